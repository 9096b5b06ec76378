"""The contract of transformer decoders."""

from __future__ import annotations

from typing import ClassVar, cast

import fvcore.nn.weight_init as weight_init
import torch
from detectron2.config import CfgNode
from detectron2.layers import Conv2d
from torch import Tensor, nn

from mask_former.registries import TRANSFORMER_DECODER_REGISTRY, lookup
from mask_former.structures import Outputs, ParameterRows, Prediction

from ..deep_supervision import DeeplySupervised

__all__ = [
    "TransformerDecoder",
    "build_transformer_decoder",
    "input_projection",
    "make_predictions",
]


class TransformerDecoder(DeeplySupervised):
    """Base class: predicts masks, one class each, from feature maps and per-pixel embeddings."""

    CLASS_PARAMETERS: ClassVar[tuple[str, ...]] = ("class_embed.weight", "class_embed.bias")
    """Names of parameters with one row for each class, then one for "no object"."""
    QUERY_PARAMETERS: ClassVar[tuple[str, ...]] = ("query_embed.weight",)
    """Names of parameters with one row for each query."""
    LEVELS = 1
    """Number of maps that :meth:`check_maps` expects."""

    def decode(
        self, maps: tuple[Tensor, ...], mask_features: Tensor, *, all_layers: bool
    ) -> list[Prediction]:
        """Predict a set of masks.

        Args:
            maps: the maps that queries attend to, B×C×h_i×w_i each, coarse to fine, as named by
                ``MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE``.
            mask_features: B×MASK_DIM×h×w, per-pixel embeddings.
            all_layers: predict from every layer, not only from the last.

        Returns:
            Predictions, first layer to last. Without mask classification they have no
            ``pred_logits``.
        """
        raise NotImplementedError

    def check_maps(self, maps: tuple[Tensor, ...]) -> None:
        """Raise ValueError, naming the keys, unless there are ``LEVELS`` maps."""
        if len(maps) != self.LEVELS:
            raise ValueError(
                f"{type(self).__name__} attends to {self.LEVELS} maps, but got {len(maps)}: "
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE names them. 'multi_scale_pixel_decoder' "
                "stands for all maps of MSDeformAttnPixelDecoder's encoder "
                "(MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES); every other "
                "value is one map."
            )

    def forward(self, maps: tuple[Tensor, ...], mask_features: Tensor) -> Outputs:
        """Predict as :meth:`decode` does, from every layer under deep supervision."""
        *earlier, last = self.decode(maps, mask_features, all_layers=self.predicts_all)
        return cast(Outputs, {**last, "aux_outputs": earlier})

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class or query."""
        return ParameterRows(dict.fromkeys(self.CLASS_PARAMETERS, 1), self.QUERY_PARAMETERS)


def input_projection(in_channels: int, hidden_dim: int, enforce: bool) -> nn.Module:
    """Create the 1×1 convolution of a map to ``hidden_dim`` channels.

    Args:
        in_channels: channels of the map.
        hidden_dim: width of the decoder.
        enforce: project a map that has ``hidden_dim`` channels, too; otherwise it stays as it is.
    """
    if in_channels == hidden_dim and not enforce:
        return nn.Identity()
    projection = Conv2d(in_channels, hidden_dim, kernel_size=1)
    weight_init.c2_xavier_fill(projection)
    return projection


def make_predictions(
    states: Tensor, kernels: Tensor, mask_features: Tensor, class_embed: nn.Module | None
) -> list[Prediction]:
    """Make L predictions.

    Args:
        states: L×B×Q×C, of the queries.
        kernels: L×B×Q×MASK_DIM; a mask is the product of its kernel with the embedding of each
            pixel.
        mask_features: B×MASK_DIM×h×w, the per-pixel embeddings.
        class_embed: computes class logits from states; None: predictions have no ``pred_logits``.
    """
    masks = torch.einsum("lbqc,bchw->lbqhw", kernels, mask_features)
    parts = {"pred_masks": masks.unbind(), "queries": states.unbind()}
    if class_embed is not None:
        parts["pred_logits"] = class_embed(states).unbind()
    return [
        cast(Prediction, dict(zip(parts, values, strict=True)))
        for values in zip(*parts.values(), strict=True)
    ]


def build_transformer_decoder(
    cfg: CfgNode, in_channels: int, mask_classification: bool = True
) -> TransformerDecoder:
    """Build the decoder that ``MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME`` names.

    Args:
        cfg: the config.
        in_channels: channels of the maps that the queries attend to.
        mask_classification: predict a class for each query; otherwise only masks.

    Raises:
        KeyError: for an unknown name.
        TypeError: if the registered class is not a :class:`TransformerDecoder`.
    """
    key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
    name = cfg.MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME
    entry = lookup(TRANSFORMER_DECODER_REGISTRY, name, key)
    decoder = entry(cfg, in_channels, mask_classification)
    if not isinstance(decoder, TransformerDecoder):
        raise TypeError(
            f"{key} is {name!r}, which is not a transformer decoder: derive {entry.__name__} from "
            "mask_former.modeling.transformer_decoder.base.TransformerDecoder, with a decode()."
        )
    return decoder
