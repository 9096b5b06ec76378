"""detectron2's Swin Transformer (arXiv 2103.14030), with the published names and settings.

Parameters, their names and the outputs equal detectron2's. By default :class:`SwinStage` replaces
each stage: it keeps the parameters and runs the kernels of
:mod:`mask_former.ops.window_attention`. ``MODEL.REFERENCE_OPS`` keeps detectron2's stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor, nn

from mask_former.ops.open_layout import OpenLayout, open_layout
from mask_former.ops.window_attention import attend_batched, attend_fused, attend_reference
from mask_former.ops.window_layout import (
    PlainLayout,
    WindowLayout,
    from_windows,
    plain_layout,
    to_windows,
    window_layout,
)

__all__ = ["D2SwinTransformer", "SwinStage"]

_STAGES = ("res2", "res3", "res4", "res5")

Layout = PlainLayout | OpenLayout | WindowLayout


class _Attention(nn.Module):
    """Multi-head attention within windows, with relative position bias."""

    relative_position_index: Tensor

    def __init__(self, source: WindowAttention) -> None:
        """Take over the parameters of detectron2's ``source``."""
        super().__init__()
        self.num_heads, self.scale = source.num_heads, source.scale
        self.relative_position_bias_table = source.relative_position_bias_table
        self.register_buffer("relative_position_index", source.relative_position_index)
        self.qkv, self.attn_drop = source.qkv, source.attn_drop
        self.proj, self.proj_drop = source.proj, source.proj_drop

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Apply window attention to tokens B×HW×C; the output has the same shape."""
        options = {"scale": self.scale, "dropout": self.attn_drop.p if self.training else 0.0}
        if isinstance(layout, WindowLayout):
            query, key, value = to_windows(self.qkv(x), self.qkv.bias, layout, self.num_heads)
            attend = attend_fused if x.is_cuda else attend_batched
            attended = attend(query, key, value, self._bias(query.dtype), layout, **options)
            joined = from_windows(attended, layout)
        else:
            parts = self.qkv(layout.cut(x)).chunk(3, -1)
            query, key, value = (
                part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts
            )
            attended = attend_reference(
                query, key, value, self._bias(query.dtype), layout, **options
            )
            joined = layout.join(attended.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(joined.view(x.shape)))

    def _bias(self, dtype: torch.dtype) -> Tensor:
        """Return the bias 1×heads×N×N between the N tokens of a window."""
        index = self.relative_position_index
        bias = self.relative_position_bias_table[index.view(-1)].view(1, *index.shape, -1)
        return bias.permute(0, 3, 1, 2).to(dtype)


class _Block(nn.Module):
    """Window attention and MLP, each with pre-normalisation and a residual connection."""

    def __init__(self, source: SwinTransformerBlock) -> None:
        """Take over the parameters of detectron2's ``source``."""
        super().__init__()
        self.shift_size = source.shift_size
        self.norm1, self.attn = source.norm1, _Attention(source.attn)
        self.drop_path, self.norm2, self.mlp = source.drop_path, source.norm2, source.mlp

    def forward(self, x: Tensor, layout: Layout) -> Tensor:
        """Transform tokens B×HW×C; the output has the same shape."""
        x = x + self.drop_path(self.attn(self.norm1(x), layout))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _PatchMerging(nn.Module):
    """Layer that merges 2×2 tokens into one with twice the channels; odd sides are padded."""

    def __init__(self, source: PatchMerging) -> None:
        """Take over the parameters of detectron2's ``source``."""
        super().__init__()
        self.reduction, self.norm = source.reduction, source.norm

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Merge tokens B×HW×C into B×(⌈H/2⌉·⌈W/2⌉)×2C."""
        channels = x.shape[-1]
        x = F.pad(x.view(-1, height, width, channels), (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        # the four tokens of a square in column-major order, as the pretrained weights expect
        x = x.permute(0, 1, 3, 4, 2, 5).reshape(x.shape[0], -1, 4 * channels)
        return self.reduction(self.norm(x))


class SwinStage(nn.Module):
    """The blocks of one stage, and the patch merging before the next stage."""

    def __init__(self, source: BasicLayer) -> None:
        """Take over the parameters of detectron2's ``source``."""
        super().__init__()
        self.window_size, self.num_heads = source.window_size, source.blocks[0].num_heads
        self.shifts = {block.shift_size for block in source.blocks}
        self.blocks = nn.ModuleList(map(_Block, source.blocks))
        self.downsample = source.downsample and _PatchMerging(source.downsample)

    def forward(
        self, x: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """Run the stage on tokens B×HW×C.

        Returns:
            The output B×HW×C, H and W; then the next stage's input with its height and width.
        """
        layouts = {shift: self._layout(x, height, width, shift) for shift in self.shifts}
        for block in self.blocks:
            x = block(x, layouts[block.shift_size])
        if self.downsample is None:
            return x, height, width, x, height, width
        merged = self.downsample(x, height, width)
        return x, height, width, merged, (height + 1) // 2, (width + 1) // 2

    def _layout(self, x: Tensor, height: int, width: int, shift: int) -> Layout:
        size = self.window_size
        exporting = getattr(torch.compiler, "is_exporting", bool)  # missing in torch 2.6
        if exporting() or torch.jit.is_tracing():
            return open_layout(x.shape[0], height, width, size, shift, x.device)
        if torch.compiler.is_compiling():  # the compiler optimises the plain copies itself
            return plain_layout(x.shape[0], height, width, size, shift, x.device)
        return window_layout(x.shape[0], height, width, self.num_heads, size, shift, x.device)


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """detectron2's ``SwinTransformer``, configured by ``MODEL.SWIN``; its maps are res2 … res5."""

    layers: nn.ModuleList

    @configurable
    def __init__(
        self, *, out_features: Sequence[str], reference_ops: bool = False, **settings: Any
    ) -> None:
        """Build all four stages and their norms, because the published weights contain them all.

        Args:
            out_features: names of the maps to return.
            reference_ops: keep detectron2's own stages.
            settings: arguments of detectron2's ``SwinTransformer``.

        Raises:
            KeyError: if ``out_features`` contains an unknown name.
        """
        unknown = set(out_features) - set(_STAGES)
        if unknown:
            raise KeyError(
                f"MODEL.SWIN.OUT_FEATURES has {sorted(unknown)}; expected names of {list(_STAGES)}."
            )
        super().__init__(**settings)
        if not reference_ops:
            self.layers = nn.ModuleList(map(SwinStage, self.layers))
        self._out_features = list(out_features)
        self._out_feature_strides = {
            name: settings["patch_size"] * 2**stage for stage, name in enumerate(_STAGES)
        }
        self._out_feature_channels = dict(zip(_STAGES, self.num_features, strict=True))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        swin = cfg.MODEL.SWIN
        # The meta-architecture reads USE_CHECKPOINT: see modeling/activation_checkpointing.py
        settings = {k.lower(): value for k, value in swin.items() if k != "USE_CHECKPOINT"}
        return {
            **settings,
            "in_chans": input_shape.channels,
            "reference_ops": cfg.MODEL.REFERENCE_OPS,
        }

    @property
    def size_divisibility(self) -> int:
        """Stride of the coarsest map, in pixels; detectron2's property raises."""
        return self._out_feature_strides[_STAGES[-1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute maps by name, at strides 4, 8, 16, 32, from normalised images B×3×H×W."""
        maps = dict(zip(_STAGES, super().forward(x).values(), strict=True))
        return {name: maps[name] for name in self._out_features}
