"""The mask-classification head: a pixel decoder and a transformer decoder."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.structures import Outputs, ParameterRows, PixelFeatures, Prediction

from ..pixel_decoder import PixelDecoder, build_pixel_decoder
from ..transformer_decoder.base import TransformerDecoder, build_transformer_decoder

__all__ = ["DecoderPair", "MaskFormerHead", "prefixed"]

_PIXEL_DECODER_FIELDS = {
    "transformer_encoder": "encoder_features",
    "pixel_embedding": "mask_features",
    "multi_scale_pixel_decoder": "multi_scale",
}
"""Values of ``TRANSFORMER_IN_FEATURE`` and the field of ``PixelFeatures`` that each one names."""


class DecoderPair(nn.Module):
    """A pixel decoder and a transformer decoder (``predictor``, as in the published weights)."""

    def __init__(
        self,
        *,
        pixel_decoder: PixelDecoder,
        predictor: TransformerDecoder,
        transformer_in_feature: str,
    ) -> None:
        """Connect both decoders.

        Args:
            pixel_decoder: computes per-pixel embeddings.
            predictor: the transformer decoder.
            transformer_in_feature: name of the map that queries attend to: a backbone map,
                ``transformer_encoder``, ``pixel_embedding`` or ``multi_scale_pixel_decoder``.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def parts_of(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], mask_classification: bool = True
    ) -> dict[str, Any]:
        """Build the constructor's arguments from a config.

        Raises:
            KeyError: if ``TRANSFORMER_IN_FEATURE`` is not the name of a map.
            ValueError: if it names a map that the pixel decoder does not output, or if the mask
                features do not have ``MASK_DIM`` channels.
        """
        decoder = build_pixel_decoder(cfg, input_shape)
        shapes = decoder.output_shape()
        _check_mask_dim(cfg, decoder, shapes["mask_features"].channels)
        in_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        maps = {**input_shape, **{k: shapes.get(v) for k, v in _PIXEL_DECODER_FIELDS.items()}}
        if in_feature not in maps:
            raise KeyError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}; expected one of "
                f"{sorted(maps)}."
            )
        attended = maps[in_feature]
        if attended is None:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}, a map that the pixel "
                f"decoder {type(decoder).__name__} does not output. Use 'res5', which every model "
                "has; 'TransformerEncoderPixelDecoder' outputs 'transformer_encoder', and "
                "'MSDeformAttnPixelDecoder' 'multi_scale_pixel_decoder'."
            )
        channels = attended.channels
        return {
            "pixel_decoder": decoder,
            "predictor": build_transformer_decoder(cfg, channels, mask_classification),
            "transformer_in_feature": in_feature,
        }

    def decoder_inputs(
        self, features: dict[str, Tensor]
    ) -> tuple[PixelFeatures, tuple[Tensor, ...]]:
        """Run the pixel decoder and select the maps that queries attend to.

        Args:
            features: backbone maps B×C_i×h_i×w_i by name.

        Returns:
            The pixel decoder's maps, and the selected maps B×C×h_i×w_i, coarse to fine.
        """
        pixels = PixelFeatures(*self.pixel_decoder.forward_features(features))
        field = _PIXEL_DECODER_FIELDS.get(self.transformer_in_feature)
        maps = getattr(pixels, field) if field else features[self.transformer_in_feature]
        return pixels, maps if isinstance(maps, tuple) else (maps,)

    def predict_masks(self, features: dict[str, Tensor]) -> Outputs:
        """Predict a set of masks from backbone maps B×C_i×h_i×w_i by name."""
        pixels, maps = self.decoder_inputs(features)
        return self.predictor(maps, pixels.mask_features)


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(DecoderPair):
    """The mask-classification head (paper, section 3.3)."""

    @configurable
    def __init__(self, *, num_classes: int, **decoders: Any) -> None:
        """Connect both decoders.

        Args:
            num_classes: K, without "no object".
            decoders: arguments of :class:`DecoderPair`.
        """
        super().__init__(**decoders)
        self.num_classes = num_classes

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        parts = cls.parts_of(cfg, input_shape)
        return {"num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, **parts}

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Predict a set of masks from backbone maps B×C_i×h_i×w_i by name."""
        return self.predict_masks(features)

    def inner_outputs(self, features: dict[str, Tensor]) -> tuple[PixelFeatures, list[Prediction]]:
        """Return the maps of the pixel decoder and the predictions of all decoder layers."""
        pixels, maps = self.decoder_inputs(features)
        return pixels, self.predictor.decode(maps, pixels.mask_features, all_layers=True)

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class or query, relative to the head."""
        return prefixed("predictor.", self.predictor.parameter_rows())


def prefixed(prefix: str, rows: ParameterRows) -> ParameterRows:
    """Add a prefix to all names."""
    classes = {prefix + name: more for name, more in rows.classes.items()}
    return ParameterRows(classes, tuple(prefix + name for name in rows.queries))


def _check_mask_dim(cfg: CfgNode, decoder: PixelDecoder, found: int) -> None:
    expected = cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
    if found != expected:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.MASK_DIM is {expected}, but the mask features of "
            f"{type(decoder).__name__} have {found} channels: set the key to {found}."
        )
