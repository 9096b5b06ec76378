"""The paper's lightweight pixel decoder: a feature pyramid (FPN, arXiv 1612.03144)."""

from __future__ import annotations

from typing import Any

import fvcore.nn.weight_init as weight_init
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor

from mask_former.structures import PixelFeatures
from mask_former.utils.norms import build_norm

from .base import PixelDecoder

__all__ = ["BasePixelDecoder", "pyramid_conv"]


def pyramid_conv(
    in_dim: int, out_dim: int, kernel: int, norm: str, activation: Any = None
) -> Conv2d:
    """Create a convolution of a feature pyramid, with Caffe2's Xavier initialisation.

    Args:
        in_dim, out_dim: channels.
        kernel: side of the kernel, odd.
        norm: detectron2's name of a norm; "" for a bias and no norm.
        activation: function after the norm.

    Raises:
        ValueError: if the norm is unknown, or does not fit ``out_dim``.
    """
    conv = Conv2d(
        in_dim,
        out_dim,
        kernel_size=kernel,
        padding=kernel // 2,
        bias=norm == "",
        norm=build_norm(norm, out_dim, "MODEL.SEM_SEG_HEAD.NORM"),
        activation=activation,
    )
    weight_init.c2_xavier_fill(conv)
    return conv


@SEM_SEG_HEADS_REGISTRY.register()
class BasePixelDecoder(PixelDecoder):
    """Feature pyramid: from coarse to fine, each map is upsampled and added to the next finer one.

    As in the published weights, ``layer_1 … layer_n`` and ``adapter_1 … adapter_{n-1}`` are
    numbered from the finest level, 1.
    """

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, conv_dim: int, mask_dim: int, norm: str
    ) -> None:
        """Create the layers.

        Args:
            input_shape: channels and strides of the backbone maps, by name.
            conv_dim: channels of the pyramid.
            mask_dim: channels of the per-pixel embeddings.
            norm: detectron2's name of a norm; "" for convolutions with a bias and no norm.
        """
        super().__init__()
        finest_first = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.in_features = finest_first
        self.levels = len(finest_first)
        self.strides = [input_shape[name].stride for name in finest_first]
        self.conv_dim, self.mask_dim = conv_dim, mask_dim
        for level, name in enumerate(finest_first, start=1):
            channels = input_shape[name].channels
            if level == self.levels:
                self.add_module(f"layer_{level}", pyramid_conv(channels, conv_dim, 3, norm, F.relu))
            else:
                self.add_module(f"adapter_{level}", pyramid_conv(channels, conv_dim, 1, norm))
                self.add_module(f"layer_{level}", pyramid_conv(conv_dim, conv_dim, 3, norm, F.relu))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=3, padding=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"mask_features": ShapeSpec(channels=self.mask_dim, stride=self.strides[0])}

    def encode(self, coarsest: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the input of ``layer_n``, and the encoder's map or None."""
        return coarsest, None

    def forward_features(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Compute the per-pixel embeddings.

        Args:
            features: B×C_i×h_i×w_i by name.

        Returns:
            Mask features B×mask_dim×H/4×W/4 (the finest map's grid); with an encoder, its output
            B×conv_dim×h_n×w_n.
        """
        coarsest, encoded = self.encode(features[self.in_features[-1]])
        pyramid = self.get_submodule(f"layer_{self.levels}")(coarsest)
        for level in range(self.levels - 1, 0, -1):
            lateral = self.get_submodule(f"adapter_{level}")(features[self.in_features[level - 1]])
            upsampled = F.interpolate(pyramid, size=lateral.shape[-2:], mode="nearest")
            pyramid = self.get_submodule(f"layer_{level}")(lateral + upsampled)
        return PixelFeatures(self.mask_features(pyramid), encoded)
