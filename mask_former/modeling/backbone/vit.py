"""A plain ViT of timm, such as DINOv2 or DINOv3, with the simple feature pyramid of ViTDet.

The pyramid (arXiv 2203.16527, section 3) makes all maps from the last map of the ViT, by transposed
convolutions and pooling. So MaskFormer and Mask2Former run on a ViT as on any other backbone.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import Tensor, nn
from torch.nn import functional as F

from .timm_vit import create_vit

__all__ = ["ViTBackbone", "add_config", "build_vit_backbone"]

_STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
_SCALES = {16: (4.0, 2.0, 1.0, 0.5), 8: (2.0, 1.0, 0.5)}
"""Size of the pyramid's maps relative to that of the ViT, by the side of a patch."""


def add_config(cfg: CfgNode) -> None:
    """Add the keys ``MODEL.VIT.*``."""
    node = cfg.MODEL.VIT = CN()
    node.NAME = "vit_small_patch14_reg4_dinov2"  # timm's name of the ViT
    # Pixels, 8 or 16. The kernel of weights for another size, such as 14, is resampled.
    node.PATCH_SIZE = 16
    node.OUT_CHANNELS = 256  # channels of the maps res2 … res5
    # 0: none; n: the embeddings and the first n blocks; -1, or the number of blocks: all of the
    # ViT, not the pyramid.
    node.FREEZE_AT = 0
    node.DROP_PATH_RATE = 0.0  # stochastic depth in the last block, a probability


class ViTBackbone(Backbone):
    """A plain ViT, and maps res2 … res5 at strides 4 … 32 made from its last one."""

    @configurable
    def __init__(
        self,
        name: str,
        *,
        patch_size: int = 16,
        out_channels: int = 256,
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        """Create the layers with random weights.

        Args:
            name: timm's name of the ViT.
            patch_size: side of a patch, in pixels: 8 or 16.
            out_channels: channels of the maps.
            freeze_at: 0 freezes nothing, n the embeddings and the first n blocks, -1 all of the
                ViT.
            drop_path_rate: probability of stochastic depth in the last block.
            in_channels: channels of the image.

        Raises:
            ImportError: if timm is not installed.
            ValueError: if timm has no such ViT, or if a number is out of range.
        """
        super().__init__()
        if patch_size not in _SCALES:
            raise ValueError(f"MODEL.VIT.PATCH_SIZE is {patch_size}, expected 8 or 16 pixels.")
        self.vit: Any = _create(
            name, patch_size, in_chans=in_channels, drop_path_rate=drop_path_rate
        )
        self.pyramid = _pyramid(self.vit.embed_dim, patch_size, out_channels)
        self._out_features = list(_STRIDES)
        self._out_feature_strides = dict(_STRIDES)
        self._out_feature_channels = dict.fromkeys(_STRIDES, out_channels)
        self._frozen = self._freeze(freeze_at)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.VIT
        return {
            "name": node.NAME,
            "patch_size": node.PATCH_SIZE,
            "out_channels": node.OUT_CHANNELS,
            "freeze_at": node.FREEZE_AT,
            "drop_path_rate": node.DROP_PATH_RATE,
            "in_channels": input_shape.channels,
        }

    @property
    def size_divisibility(self) -> int:
        return max(_STRIDES.values())

    def _freeze(self, freeze_at: int) -> list[nn.Module]:
        """Freeze the first blocks; return the modules to keep in evaluation mode."""
        depth = len(self.vit.blocks)
        if not -1 <= freeze_at <= depth:
            raise ValueError(
                f"MODEL.VIT.FREEZE_AT is {freeze_at}, expected 0 (freeze nothing), 1 … {depth} "
                "(the embeddings and so many blocks), or -1 (all of the ViT)."
            )
        count = depth if freeze_at == -1 else freeze_at
        if not count:
            return []
        for name, parameter in self.named_parameters():
            above = self.blocks_above(name)
            if above is not None and above >= depth - count:
                parameter.requires_grad_(False)
        later = ("blocks", "norm")
        embeddings = [module for name, module in self.vit.named_children() if name not in later]
        return [*embeddings, *self.vit.blocks[:count]]

    def train(self, mode: bool = True) -> ViTBackbone:
        """Set the mode as usual, but keep frozen layers in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute maps B×C×⌈H/stride⌉×⌈W/stride⌉ by name from normalised images B×3×H×W."""
        height, width = images.shape[-2:]
        step = self.size_divisibility
        padded = F.pad(images, (0, -width % step, 0, -height % step))
        (patches,) = self.vit.forward_intermediates(
            padded, indices=1, norm=True, intermediates_only=True
        )
        maps = self.pyramid(patches).values()
        return {
            name: one[..., : -(-height // stride), : -(-width // stride)]
            for (name, stride), one in zip(_STRIDES.items(), maps, strict=True)
        }

    def blocks_above(self, parameter: str) -> int | None:
        """Count the blocks of the ViT after the one with a parameter; None: it is not of the ViT.

        Embeddings belong to the first block, and the final norm to the last one.
        """
        part, name, *rest = parameter.split(".")
        if part != "vit":
            return None
        if name == "norm":
            return 0
        block = int(rest[0]) if name == "blocks" else 0
        return len(self.vit.blocks) - 1 - block


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ViTBackbone:
    """Build the ViT that ``MODEL.VIT`` describes; ``MODEL.WEIGHTS`` loads its weights."""
    return ViTBackbone(cfg, input_shape)


def _create(name: str, patch_size: int, **options: Any) -> Any:
    """Create a ViT for images of any size, with as many positions as its published weights have."""
    key = "MODEL.VIT.NAME"
    with torch.device("meta"):
        grid = create_vit(name, key).patch_embed.grid_size
    size = [count * patch_size for count in grid]
    return create_vit(
        name, key, img_size=size, patch_size=patch_size, dynamic_img_size=True, **options
    )


class _Patches(Backbone):
    """The map of patches, as a network of its own: detectron2's pyramid asks for one."""

    def __init__(self, shape: ShapeSpec) -> None:
        super().__init__()
        self.shape = shape

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"patches": self.shape}

    def forward(self, patches: Tensor) -> dict[str, Tensor]:
        return {"patches": patches}


def _pyramid(width: int, patch_size: int, out_channels: int) -> SimpleFeaturePyramid:
    """Create the pyramid on a ViT with ``width`` channels; its maps are p2 … p5."""
    from timm.layers import LayerNorm2d  # torch's LayerNorm, unlike detectron2's

    scales, top = _SCALES[patch_size], None
    if len(scales) < len(_STRIDES):
        top = LastLevelMaxPool()
        top.in_feature = "p4"
    patches = _Patches(ShapeSpec(channels=width, stride=patch_size))
    return SimpleFeaturePyramid(patches, "patches", out_channels, scales, top, norm=LayerNorm2d)
