"""Pixel decoder and predictor, put together."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.structures import Outputs

from ..pixel_decoder import build_pixel_decoder
from ..transformer_decoder.maskformer import build_predictor

__all__ = ["MaskFormerHead"]


@SEM_SEG_HEADS_REGISTRY.register()
class MaskFormerHead(nn.Module):
    """The mask-classification head (paper, section 3.3)."""

    pixel_decoder: Any  # a module with forward_features()
    mask_classification = True  # predict a class for each query

    @configurable
    def __init__(
        self, *, pixel_decoder: nn.Module, predictor: nn.Module, transformer_in_feature: str
    ) -> None:
        """
        Args:
            pixel_decoder: see :func:`~mask_former.modeling.pixel_decoder.build_pixel_decoder`.
            predictor: see
                :func:`~mask_former.modeling.transformer_decoder.maskformer.build_predictor`.
            transformer_in_feature: the map that the queries look at: a backbone map's name,
                ``transformer_encoder`` or ``pixel_embedding``.
        """
        super().__init__()
        self.pixel_decoder = pixel_decoder
        self.predictor = predictor
        self.transformer_in_feature = transformer_in_feature

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        in_feature = cfg.MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE
        channels = {
            **{name: shape.channels for name, shape in input_shape.items()},
            "transformer_encoder": cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM,
            "pixel_embedding": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
        }
        if in_feature not in channels:
            raise KeyError(
                f"MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is {in_feature!r}; this model has "
                f"{sorted(channels)}."
            )
        return {
            "pixel_decoder": build_pixel_decoder(cfg, input_shape),
            "predictor": build_predictor(cfg, channels[in_feature], cls.mask_classification),
            "transformer_in_feature": in_feature,
        }

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Backbone maps by name to the predicted set."""
        return self.predict(features)

    def predict(self, features: dict[str, Tensor]) -> Outputs:
        """The same, for heads that make something else of the set."""
        mask_features, encoded = self.pixel_decoder.forward_features(features)
        return self.predictor(self.feature_map(features, mask_features, encoded), mask_features)

    def feature_map(
        self, features: dict[str, Tensor], mask_features: Tensor, encoded: Tensor | None
    ) -> Tensor:
        """The map that the queries look at, of those that there are.

        Args:
            features: backbone maps by name.
            mask_features, encoded: what the pixel decoder gives.

        Raises:
            ValueError: if it is the encoder's, and the pixel decoder has none.
        """
        maps = {**features, "transformer_encoder": encoded, "pixel_embedding": mask_features}
        feature_map = maps[self.transformer_in_feature]
        if feature_map is None:
            raise ValueError(
                "MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE is 'transformer_encoder', but the pixel "
                f"decoder {type(self.pixel_decoder).__name__} has no encoder: use "
                "'TransformerEncoderPixelDecoder', or 'res5'."
            )
        return feature_map
