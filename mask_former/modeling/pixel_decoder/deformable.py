"""Mask2Former's pixel decoder (arXiv 2112.01527): deformable attention, then a feature pyramid."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.layers import DeformableTransformer
from mask_former.structures import PixelFeatures

from .base import PixelDecoder
from .fpn import pyramid_conv

__all__ = ["MSDeformAttnPixelDecoder"]

_GROUPS = 32
"""Groups of the norms after the input projections."""
_POINTS = 4
"""Points that a head samples in each level."""
_FEEDFORWARD_DIM = 1024
"""Hidden channels of the encoder's feed-forward networks."""


@SEM_SEG_HEADS_REGISTRY.register()
class MSDeformAttnPixelDecoder(PixelDecoder):
    """A deformable encoder of the coarse maps; a pyramid adds the maps that are finer.

    As in the published weights, ``input_proj`` is numbered from the coarsest map, 0, and
    ``adapter_1``, ``layer_1`` … from the finest, 1. Everything is computed in fp32 or more.
    """

    @configurable
    def __init__(
        self,
        encoder_shape: dict[str, ShapeSpec],
        pyramid_shape: dict[str, ShapeSpec],
        *,
        conv_dim: int,
        mask_dim: int,
        norm: str,
        encoder_layers: int,
        heads: int,
        dropout: float,
        reference_ops: bool = False,
    ) -> None:
        """Create the layers.

        Args:
            encoder_shape: channels and strides of the encoder's maps, by name.
            pyramid_shape: channels and strides of the finer maps, by name.
            conv_dim: width of the encoder and of the pyramid, in channels.
            mask_dim: channels of the per-pixel embeddings.
            norm: detectron2's name of the norm in the pyramid; "" for a bias and no norm.
            encoder_layers, heads, dropout, reference_ops: see
                :class:`~mask_former.layers.DeformableTransformer`.

        Raises:
            ValueError: if ``conv_dim`` does not fit the norms or the number of heads.
        """
        super().__init__()
        if conv_dim % _GROUPS:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.CONVS_DIM is {conv_dim}; expected a multiple of {_GROUPS}, "
                "the groups of MSDeformAttnPixelDecoder's norms."
            )
        shapes = {**encoder_shape, **pyramid_shape}
        coarse_first = sorted(encoder_shape, key=lambda name: -shapes[name].stride)
        finest_first = sorted(pyramid_shape, key=lambda name: shapes[name].stride)
        self.encoder_features, self.pyramid_features = coarse_first, finest_first
        self.strides = [shapes[name].stride for name in (*finest_first, *coarse_first[::-1])]
        self.conv_dim, self.mask_dim = conv_dim, mask_dim
        self.input_proj = nn.ModuleList(
            _input_projection(shapes[name].channels, conv_dim) for name in coarse_first
        )
        self.transformer = DeformableTransformer(
            encoder_layers=encoder_layers,
            dim=conv_dim,
            heads=heads,
            levels=len(coarse_first),
            points=_POINTS,
            feedforward_dim=_FEEDFORWARD_DIM,
            dropout=dropout,
            reference_ops=reference_ops,
        )
        for level, name in enumerate(finest_first, start=1):
            adapter = pyramid_conv(shapes[name].channels, conv_dim, 1, norm)
            self.add_module(f"adapter_{level}", adapter)
            self.add_module(f"layer_{level}", pyramid_conv(conv_dim, conv_dim, 3, norm, F.relu))
        self.mask_features = Conv2d(conv_dim, mask_dim, kernel_size=1)
        weight_init.c2_xavier_fill(self.mask_features)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        encoded = list(head.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES)
        unknown = [name for name in encoded if name not in head.IN_FEATURES]
        if unknown or not encoded:
            raise ValueError(
                "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES is "
                f"{encoded}; expected one or more of MODEL.SEM_SEG_HEAD.IN_FEATURES, "
                f"{list(head.IN_FEATURES)}."
            )
        finest = min(input_shape[name].stride for name in encoded)
        steps = range(head.COMMON_STRIDE, finest)
        pyramid = [name for name in head.IN_FEATURES if input_shape[name].stride in steps]
        return {
            "encoder_shape": {name: input_shape[name] for name in encoded},
            "pyramid_shape": {name: input_shape[name] for name in pyramid},
            "conv_dim": head.CONVS_DIM,
            "mask_dim": head.MASK_DIM,
            "norm": head.NORM,
            "encoder_layers": head.TRANSFORMER_ENC_LAYERS,
            "heads": cfg.MODEL.MASK_FORMER.NHEADS,
            "dropout": cfg.MODEL.MASK_FORMER.DROPOUT,
            "reference_ops": cfg.MODEL.REFERENCE_OPS,
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        *_, coarsest = self.strides
        finest_encoded = self.strides[len(self.pyramid_features)]
        return {
            "mask_features": ShapeSpec(channels=self.mask_dim, stride=self.strides[0]),
            "encoder_features": ShapeSpec(channels=self.conv_dim, stride=coarsest),
            "multi_scale": ShapeSpec(channels=self.conv_dim, stride=finest_encoded),
        }

    def forward_features(self, features: dict[str, Tensor]) -> PixelFeatures:
        """Compute the maps.

        Args:
            features: B×C_i×h_i×w_i by name.

        Returns:
            Mask features B×mask_dim×h×w, on the grid of the finest map; all encoded maps
            B×conv_dim×h_i×w_i, coarse to fine, and the coarsest of them.
        """
        names = (*self.encoder_features, *self.pyramid_features)
        with _without_autocast(features[names[0]]):
            maps = {name: _at_least_fp32(features[name]) for name in names}
            encoded = self.transformer.encode(
                [
                    projection(maps[name])
                    for projection, name in zip(self.input_proj, self.encoder_features, strict=True)
                ]
            )
            pyramid = encoded[-1]
            for level in range(len(self.pyramid_features), 0, -1):
                name = self.pyramid_features[level - 1]
                lateral = self.get_submodule(f"adapter_{level}")(maps[name])
                size = lateral.shape[-2:]
                upsampled = F.interpolate(pyramid, size, mode="bilinear", align_corners=False)
                pyramid = self.get_submodule(f"layer_{level}")(lateral + upsampled)
            return PixelFeatures(self.mask_features(pyramid), encoded[0], encoded)


def _input_projection(in_dim: int, out_dim: int) -> nn.Sequential:
    """Create a 1×1 convolution (Xavier uniform, bias 0) and a norm."""
    conv = nn.Conv2d(in_dim, out_dim, kernel_size=1)
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.GroupNorm(_GROUPS, out_dim))


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _without_autocast(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context without the caller's autocast; exporters do not know it, and need none."""
    enabled = torch.is_autocast_enabled(x.device.type)
    return torch.autocast(x.device.type, enabled=False) if enabled else nullcontext()
