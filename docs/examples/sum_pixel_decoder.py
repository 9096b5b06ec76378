"""A custom pixel decoder: upsample every map to the finest grid and add them.

Put it into mask_former/modeling/pixel_decoder/, or anywhere else and pass
``--plugin sum_pixel_decoder.py``.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.modeling.pixel_decoder import PixelDecoder
from mask_former.structures import PixelFeatures


@SEM_SEG_HEADS_REGISTRY.register()
class SumPixelDecoder(PixelDecoder):
    """A pixel decoder defines ``output_shape`` and ``forward_features``."""

    @configurable
    def __init__(self, input_shape: dict[str, ShapeSpec], *, conv_dim: int, mask_dim: int) -> None:
        super().__init__()
        self.mask_dim, self.stride = mask_dim, min(shape.stride for shape in input_shape.values())
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.projections = nn.ModuleDict(
            {name: Conv2d(input_shape[name].channels, conv_dim, 1) for name in self.in_features}
        )
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"mask_features": ShapeSpec(channels=self.mask_dim, stride=self.stride)}

    def forward_features(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Compute mask features B×mask_dim×H/4×W/4 from maps B×C_i×h_i×w_i by name."""
        size = features[self.in_features[0]].shape[-2:]
        total: Tensor | int = 0
        for name in self.in_features:
            projected = self.projections[name](features[name])
            total = total + F.interpolate(projected, size, mode="bilinear", align_corners=False)
        assert isinstance(total, Tensor)
        return PixelFeatures(self.mask_features(F.relu(total)))
