"""Swin Transformer (arXiv 2103.14030): detectron2's, with the published names and settings.

Parameters, their names and the results are detectron2's. What runs is not: a window attention
there copies its tokens a dozen times, here twice. When it is compiled, detectron2's own code
runs: a compiler makes of its copies what is needed. When it is exported or traced, what runs
leaves the sizes open, so that the graph takes images of any.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import (
    BasicLayer,
    PatchMerging,
    SwinTransformer,
    SwinTransformerBlock,
    WindowAttention,
)
from torch import Tensor

from mask_former.ops.window_layout import (
    OpenLayout,
    WindowLayout,
    from_windows,
    open_layout,
    to_windows,
    window_layout,
)

__all__ = ["D2SwinTransformer"]

_STAGES = ("res2", "res3", "res4", "res5")


def _sizes_stay_open() -> bool:
    """Whether a graph is being made that takes images of any size."""
    exporting = getattr(torch.compiler, "is_exporting", bool)  # torch 2.6 has none
    return exporting() or torch.jit.is_tracing()


class _WindowAttention(WindowAttention):
    def on_map(self, x: Tensor, layout: WindowLayout) -> Tensor:
        """Attention within windows, over the tokens where they stand.

        ``x`` B×HW×C. Returns the same shape.
        """
        query, key, value = to_windows(self.qkv(x), self.qkv.bias, layout, self.num_heads)
        attend = self._fused if x.is_cuda else self._plain
        attended = attend(query, key, value, self._bias().to(query.dtype), layout)
        return self.proj_drop(self.proj(from_windows(attended, layout).view(x.shape)))

    def on_open_map(self, x: Tensor, layout: OpenLayout) -> Tensor:
        """The same, where a graph leaves the sizes open."""
        size, channels = self.window_size[0], x.shape[-1]
        windows = x.reshape(-1, channels).index_select(0, layout.rows)
        windows = windows.masked_fill(layout.padding[:, None], 0).view(-1, size * size, channels)
        query, key, value = (
            part.view(-1, size * size, self.num_heads, channels // self.num_heads).transpose(1, 2)
            for part in self.qkv(windows).chunk(3, -1)
        )
        logits = self.scale * query @ key.transpose(2, 3) + self._bias()
        if layout.mask is not None:
            logits = logits + layout.mask
        attended = (logits.softmax(-1) @ value).transpose(1, 2).reshape(-1, channels)
        return self.proj(attended.index_select(0, layout.back)).view(x.shape)

    def _bias(self) -> Tensor:
        """1×heads×N×N, of the places in a window relative to each other."""
        size = self.window_size[0] * self.window_size[1]
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)]
        return bias.view(1, size, size, -1).permute(0, 3, 1, 2)

    def _plain(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, layout: WindowLayout
    ) -> Tensor:
        # The fused attention of a CPU is slower for windows of 49 tokens (docs/performance.md).
        shape = query.shape
        query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
        start = bias.expand(shape[0], -1, -1, -1).reshape(-1, *bias.shape[-2:])
        logits = torch.baddbmm(start, query, key.transpose(1, 2), alpha=self.scale)
        edges = len(layout.edge_mask)
        if edges:
            by_window = logits.view(-1, layout.windows, *bias.shape[1:])
            by_window[:, -edges:] += layout.edge_mask
        return torch.bmm(self.attn_drop(logits.softmax(-1)), value).view(shape)

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor, layout: WindowLayout
    ) -> Tensor:
        edges = len(layout.edge_mask)
        if edges:
            mask = F.pad(layout.edge_mask, (0, 0, 0, 0, 0, 0, layout.windows - edges, 0))
            bias = (bias + mask.to(bias.dtype)).repeat(len(query) // layout.windows, 1, 1, 1)
        dropout = self.attn_drop.p if self.training else 0.0
        return F.scaled_dot_product_attention(
            query, key, value, bias.expand(len(query), -1, -1, -1), dropout, scale=self.scale
        )


class _Block(SwinTransformerBlock):
    def forward(self, x: Tensor, where: Tensor | tuple[int, int] | OpenLayout) -> Tensor:
        """``x`` B×HW×C; ``where`` is (H, W), or the mask if detectron2's stage calls, or a layout
        that leaves H and W open."""
        if isinstance(where, Tensor):
            return super().forward(x, where)
        if isinstance(where, OpenLayout):
            attended = self.attn.on_open_map(self.norm1(x), where)
        else:
            layout = window_layout(
                len(x), *where, self.num_heads, self.window_size, self.shift_size, x.device
            )
            attended = self.attn.on_map(self.norm1(x), layout)
        x = x + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class _PatchMerging(PatchMerging):
    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """``x`` B×HW×C. Returns a quarter of the tokens with twice the channels."""
        channels = x.shape[-1]
        x = F.pad(x.view(-1, height, width, channels), (0, 0, 0, width % 2, 0, height % 2))
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))
        # B×H/2×W/2, then what is merged: column before row, as the weights have it
        x = x.permute(0, 1, 3, 4, 2, 5).reshape(x.shape[0], -1, 4 * channels)
        return self.reduction(self.norm(x))


class _Stage(BasicLayer):
    def forward(
        self, x: Tensor, height: int, width: int
    ) -> tuple[Tensor, int, int, Tensor, int, int]:
        """``x`` B×HW×C. Returns it after the blocks, its size, and the next stage's input, its
        size."""
        if torch.compiler.is_compiling() and not _sizes_stay_open():
            return super().forward(x, height, width)
        layouts = {}
        if _sizes_stay_open():
            for shift in {block.shift_size for block in self.blocks}:
                layouts[shift] = open_layout(
                    x.shape[0], height, width, self.window_size, shift, x.device
                )
        for block in self.blocks:
            x = block(x, layouts.get(block.shift_size, (height, width)))
        if self.downsample is None:
            return x, height, width, x, height, width
        merged = self.downsample(x, height, width)
        return x, height, width, merged, (height + 1) // 2, (width + 1) // 2


_OURS = {
    WindowAttention: _WindowAttention,
    SwinTransformerBlock: _Block,
    PatchMerging: _PatchMerging,
    BasicLayer: _Stage,
}


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """detectron2's ``SwinTransformer`` under ``MODEL.SWIN``; its maps are named res2 … res5."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """
        Raises:
            KeyError: if ``MODEL.SWIN.OUT_FEATURES`` names a map that is not there.
        """
        swin = cfg.MODEL.SWIN
        unknown = set(swin.OUT_FEATURES) - set(_STAGES)
        if unknown:
            raise KeyError(
                f"MODEL.SWIN.OUT_FEATURES has {sorted(unknown)}; a Swin has {list(_STAGES)}."
            )
        super().__init__(
            pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
            patch_size=swin.PATCH_SIZE,
            in_chans=input_shape.channels,
            embed_dim=swin.EMBED_DIM,
            depths=swin.DEPTHS,
            num_heads=swin.NUM_HEADS,
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            qkv_bias=swin.QKV_BIAS,
            qk_scale=swin.QK_SCALE,
            drop_rate=swin.DROP_RATE,
            attn_drop_rate=swin.ATTN_DROP_RATE,
            drop_path_rate=swin.DROP_PATH_RATE,
            ape=swin.APE,
            patch_norm=swin.PATCH_NORM,
        )
        for module in self.modules():  # detectron2 leaves no other way in
            module.__class__ = _OURS.get(type(module), type(module))
        # All four stages are built, norms included, for the published weights have them all.
        self._out_features = list(swin.OUT_FEATURES)
        self._out_feature_strides = {
            name: swin.PATCH_SIZE * 2**stage for stage, name in enumerate(_STAGES)
        }
        self._out_feature_channels = dict(zip(_STAGES, self.num_features, strict=True))

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides[_STAGES[-1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """B×3×H×W to maps of strides 4, 8, 16, 32 by name."""
        maps = dict(zip(_STAGES, super().forward(x).values(), strict=True))
        return {name: maps[name] for name in self._out_features}
