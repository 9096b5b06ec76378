"""The front of EoMT: a plain ViT of timm without its last blocks, which are in the head.

EoMT (arXiv 2503.19108) inserts its queries before the last blocks of the ViT. So the ViT is cut in
two: this backbone embeds the image and runs the first blocks, and
:class:`~mask_former.modeling.heads.eomt_head.EoMTHead` runs the others.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from mask_former.structures import Size

from .timm_vit import create_vit

__all__ = ["KEY", "EoMTViT", "TokenSpec", "add_config", "build_eomt_vit_backbone"]

KEY = "MODEL.EOMT.VIT"


def add_config(cfg: CfgNode) -> None:
    """Add the keys ``MODEL.EOMT.*``."""
    node = cfg.MODEL.EOMT = CN()
    node.VIT = "vit_small_patch14_reg4_dinov2"  # timm's name of the ViT
    node.PATCH_SIZE = 16  # pixels
    node.IMAGE_SIZE = [640, 640]  # height and width, in pixels, of every image the network runs on
    node.NUM_BLOCKS = 3  # blocks at the end of the ViT that also process the queries
    # Queries attend only to the patches of their own mask, until training has annealed the masks.
    # False: no masks, and only the last prediction is supervised.
    node.MASKED_ATTENTION = True
    node.ANNEALING = CN()
    node.ANNEALING.ENABLED = True  # lift the masks during training, block by block
    # Optimizer steps at which the masks of each block begin to be lifted, and at which all are.
    # Empty: the second to the fifth sixth of SOLVER.MAX_ITER.
    node.ANNEALING.START_STEPS = []
    node.ANNEALING.END_STEPS = []
    node.ANNEALING.POWER = 0.9  # exponent of the share of masks that remain


class TokenSpec(ShapeSpec):
    """Shape of a sequence of tokens; ``height`` and ``width`` are those of the grid of patches."""

    num_prefix: int
    """P, the number of tokens in front of the patches: the class token and the registers."""

    def __init__(self, channels: int, grid: Size, stride: int, num_prefix: int) -> None:
        super().__init__(channels=channels, height=grid[0], width=grid[1], stride=stride)
        self.num_prefix = num_prefix


class EoMTViT(Backbone):
    """Patch embedding, prefix tokens and the first blocks of a ViT (paper, section 3.2).

    Its map is ``tokens``, B×(P+G)×C: P prefix tokens, then the G cells of the grid of patches, row
    by row. A ViT with rotary position embeddings also returns them: ``rope``, G×2D, where D is the
    width of an attention head.
    """

    @configurable
    def __init__(
        self,
        name: str,
        *,
        image_size: Size,
        patch_size: int = 16,
        num_last_blocks: int,
        in_channels: int = 3,
    ) -> None:
        """Create the first blocks with random weights.

        Args:
            name: timm's name of the ViT.
            image_size: height and width of every image, in pixels.
            patch_size: side of a patch, in pixels.
            num_last_blocks: number of blocks at the end of the ViT that are left to the head.
            in_channels: channels of the image.

        Raises:
            ImportError: if timm is not installed.
            ValueError: if timm has no such ViT, or if a number does not fit it.
        """
        super().__init__()
        depth = vit_depth(name)
        if not 1 <= num_last_blocks < depth:
            raise ValueError(
                f"MODEL.EOMT.NUM_BLOCKS is {num_last_blocks}, expected 1 … {depth - 1}, because "
                f"{name} has {depth} blocks."
            )
        _check_size(image_size, patch_size)
        self.input_size = image_size
        self.num_last_blocks = num_last_blocks
        self.vit: Any = create_vit(
            name,
            KEY,
            depth=depth - num_last_blocks,
            img_size=image_size,
            patch_size=patch_size,
            in_chans=in_channels,
        )
        if getattr(self.vit, "rope_mixed", False):
            raise ValueError(
                f"{KEY} is {name!r}, whose rotary embeddings differ by block; expected a ViT of "
                "DINOv2 or DINOv3."
            )
        self.vit.norm = nn.Identity()  # the head has it
        grid = self.vit.patch_embed.grid_size
        self._shape = TokenSpec(self.vit.embed_dim, grid, patch_size, self.vit.num_prefix_tokens)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        node = cfg.MODEL.EOMT
        return {
            "name": node.VIT,
            "image_size": tuple(node.IMAGE_SIZE),
            "patch_size": node.PATCH_SIZE,
            "num_last_blocks": node.NUM_BLOCKS,
            "in_channels": input_shape.channels,
        }

    @property
    def size_divisibility(self) -> int:
        """0: images are padded to ``input_size`` instead."""
        return 0

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Describe the tokens; see :class:`TokenSpec`."""
        return {"tokens": self._shape}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the tokens of normalised images B×3×H×W.

        Raises:
            ValueError: if H×W is not ``input_size``.
        """
        size = tuple(images.shape[-2:])
        if size != self.input_size:
            raise ValueError(
                f"The images have {size[0]}×{size[1]} pixels (height×width), but the network is "
                f"built for {self.input_size[0]}×{self.input_size[1]}: pad or resize them, or set "
                "MODEL.EOMT.IMAGE_SIZE."
            )
        # _pos_embed is private to timm, but its public methods drop the rotary embeddings.
        embedded = self.vit._pos_embed(self.vit.patch_embed(images))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        tokens = self.vit.norm_pre(tokens)
        if rope is None:
            for block in self.vit.blocks:
                tokens = block(tokens)
            return {"tokens": tokens}
        for block in self.vit.blocks:
            tokens = block(tokens, rope=rope)
        return {"tokens": tokens, "rope": rope}

    def blocks_above(self, parameter: str) -> int:
        """Count the blocks of the whole ViT after the one with a parameter.

        Embeddings belong to the first block (published layer-wise learning-rate decay).
        """
        path = parameter.split(".")
        block = int(path[2]) if path[:2] == ["vit", "blocks"] else 0
        return self.num_last_blocks + len(self.vit.blocks) - 1 - block


@BACKBONE_REGISTRY.register()
def build_eomt_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> EoMTViT:
    """Build the front of the ViT that ``MODEL.EOMT`` describes."""
    return EoMTViT(cfg, input_shape)


def vit_depth(name: str) -> int:
    """Return the number of blocks of a ViT of timm.

    Raises:
        ImportError: if timm is not installed.
        ValueError: if timm has no such model, or if it is not a plain ViT.
    """
    with torch.device("meta"):
        return len(create_vit(name, KEY).blocks)


def _check_size(size: Size, patch_size: int) -> None:
    if len(size) != 2 or patch_size < 1 or any(n < patch_size or n % patch_size for n in size):
        raise ValueError(
            f"MODEL.EOMT.IMAGE_SIZE is {list(size)}, expected a height and a width that are "
            f"multiples of MODEL.EOMT.PATCH_SIZE, {patch_size}."
        )
