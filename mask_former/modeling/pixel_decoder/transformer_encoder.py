"""The feature pyramid with DETR's encoder on its coarsest level (paper, "6 Enc")."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from mask_former.layers import Transformer

from .fpn import BasePixelDecoder

__all__ = ["TransformerEncoderPixelDecoder"]


@SEM_SEG_HEADS_REGISTRY.register()
class TransformerEncoderPixelDecoder(BasePixelDecoder):
    """``input_proj`` and encoder layers on the coarsest map, then the pyramid."""

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        encoder_layers: int,
        heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        """Create the pyramid and an encoder of width ``conv_dim``; see their classes."""
        coarsest = max(input_shape, key=lambda name: input_shape[name].stride)
        projected = ShapeSpec(channels=conv_dim, stride=input_shape[coarsest].stride)
        super().__init__(
            {**input_shape, coarsest: projected}, conv_dim=conv_dim, mask_dim=mask_dim, norm=norm
        )
        self.input_proj = Conv2d(input_shape[coarsest].channels, conv_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.input_proj)
        self.transformer = Transformer(
            encoder_layers=encoder_layers,
            decoder_layers=0,
            dim=conv_dim,
            heads=heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            **super().from_config(cfg, input_shape),
            "encoder_layers": cfg.MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS,
            "heads": cfg.MODEL.MASK_FORMER.NHEADS,
            "feedforward_dim": cfg.MODEL.MASK_FORMER.DIM_FEEDFORWARD,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "pre_norm": cfg.MODEL.MASK_FORMER.PRE_NORM,
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        encoder = ShapeSpec(channels=self.conv_dim, stride=self.strides[-1])
        return {**super().output_shape(), "encoder_features": encoder}

    def encode(self, coarsest: Tensor) -> tuple[Tensor, Tensor]:
        encoded = self.transformer.encode(self.input_proj(coarsest))
        return encoded, encoded
