"""Cut maps of tokens into shifted windows and join them again (Swin, arXiv 2103.14030).

Reference: :class:`PlainLayout`, which pads, rolls and partitions as in the paper, with a copy for
each step; ``torch.compile`` turns it into good code, too. Fast: :class:`WindowLayout`. Padding,
roll, partition and the split into heads are all permutations of rows, so together they are one
table of row indices: tokens are copied once into the windows and once back. For graphs with
dynamic sizes (``torch.export``), see :mod:`.open_layout`.

Saves: ten of the twelve copies of a window attention (docs/performance.md, "Window attention").
"""

# Example: one map of 2×3 tokens, windows of 2×2 tokens, no shift, one head. "." is padding.
#     0 1 2        0 1 | 2 .      window 0 holds the tokens 0 1 3 4,
#     3 4 5   →    3 4 | 5 .      window 1 holds the tokens 2 . 5 .
# rows = 0 1 3 4 2 . 5 .  (the token that each slot reads)
# back = 0 1 4 2 3 6      (the slot that holds each token)

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "MASKED",
    "PlainLayout",
    "WindowLayout",
    "from_windows",
    "plain_layout",
    "side_of_map",
    "to_windows",
    "window_layout",
]

MASKED = -100.0
"""Swin's value, added to the attention logits of token pairs from opposite sides of the map."""


# The reference


@dataclass(frozen=True)
class PlainLayout:
    """B maps of H×W tokens in nW windows of N = ``size``² tokens each, in the order of the map."""

    height: int
    width: int
    size: int
    shift: int
    """Tokens by which the map is rolled up and left."""
    mask: Tensor | None
    """(B·nW)×1×N×N: 0 or -100, added to attention logits; None without a shift."""

    def cut(self, x: Tensor) -> Tensor:
        """Cut B×HW×C into (B·nW)×N×C; pad with 0 on the right and at the bottom."""
        height, width, size, shift = self.height, self.width, self.size, self.shift
        x = F.pad(x.unflatten(1, (height, width)), (0, 0, 0, -width % size, 0, -height % size))
        if shift:
            x = x.roll((-shift, -shift), (1, 2))
        x = x.unflatten(2, (-1, size)).unflatten(1, (-1, size))
        return x.transpose(2, 3).reshape(-1, size * size, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Join (B·nW)×N×C to B×HW×C: the inverse of :meth:`cut`, without the padding."""
        size, shift = self.size, self.shift
        tall, wide = -(-self.height // size), -(-self.width // size)
        x = windows.view(-1, tall, wide, size, size, windows.shape[-1])
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        if shift:
            x = x.roll((shift, shift), (1, 2))
        return x[:, : self.height, : self.width].flatten(1, 2)


def plain_layout(
    batch: int, height: int, width: int, size: int, shift: int, device: torch.device
) -> PlainLayout:
    """Build a layout for ``batch`` maps of ``height`` × ``width`` tokens, windows of ``size``²."""
    mask = _shift_mask(height, width, size, shift, device) if shift else None
    if mask is not None:
        mask = mask[:, None].repeat(batch, 1, 1, 1)
    return PlainLayout(height, width, size, shift, mask)


def _shift_mask(height: int, width: int, size: int, shift: int, device: torch.device) -> Tensor:
    """Build the mask nW×N×N: -100 for token pairs from opposite sides of the map, otherwise 0."""
    tall, wide = -(-height // size) * size, -(-width // size) * size
    row, column = (
        side_of_map(torch.arange(n, device=device), n, size, shift)[None, :] for n in (tall, wide)
    )
    region = (3 * row[..., None] + column[:, None]).view(1, tall * wide, 1)
    region = PlainLayout(tall, wide, size, 0, None).cut(region)
    return torch.zeros((), device=device).masked_fill(region != region.transpose(1, 2), MASKED)


def side_of_map(at: Tensor, end: int, size: int, shift: int) -> Tensor:
    """Compute the side of the rolled map, 0 … 2, of positions along an axis of length ``end``."""
    return (at >= end - size).long() + (at >= end - shift)


# The fast version: tables


@dataclass(frozen=True)
class WindowLayout:
    """B maps of H×W tokens in nW windows of N tokens each, as tables of row indices.

    A row is one head's part of a token. Windows that need a mask come last in an image.
    """

    batch: int
    """B."""
    windows: int
    """nW, windows of an image."""
    rows: Tensor
    """3·B·nW·heads·N: the row of the projected tokens (B·H·W·3·heads rows) that each slot reads;
    padding slots read any row."""
    padding: Tensor
    """Indices of the padding slots."""
    back: Tensor
    """B·H·W·heads: the row of the windows that holds each row of the map."""
    rows_back: Tensor
    """B·H·W·3·heads: the inverse of ``rows``."""
    edge_mask: Tensor
    """E×1×N×N: 0 or -100, for the last E windows of an image; E is 0 without a shift."""

    @property
    def mask(self) -> Tensor | None:
        """(B·nW)×1×N×N: 0 or -100, added to attention logits; None without a shift."""
        edges = len(self.edge_mask)
        if not edges:
            return None
        mask = F.pad(self.edge_mask, (0, 0, 0, 0, 0, 0, self.windows - edges, 0))
        return mask.repeat(self.batch, 1, 1, 1)


@lru_cache(maxsize=64)
def window_layout(
    batch: int, height: int, width: int, heads: int, size: int, shift: int, device: torch.device
) -> WindowLayout:
    """Compute the tables of ``batch`` maps of ``height`` × ``width`` tokens; cached.

    Args:
        batch, height, width: number of maps, and their size in tokens.
        heads: number of attention heads, into which a token is split.
        size: side of a window, in tokens.
        shift: tokens by which the map is rolled up and left.
        device: device of the tables.
    """
    number = torch.arange(1, height * width + 1).view(1, -1, 1)
    token = PlainLayout(height, width, size, shift, None).cut(number)[..., 0] - 1  # -1: padding
    mask = torch.zeros(len(token), size * size, size * size)
    if shift:
        mask = _shift_mask(height, width, size, shift, torch.device("cpu"))
    edge = mask.flatten(1).any(1)
    order = torch.cat([(~edge).nonzero(), edge.nonzero()]).flatten()
    return _tables(token[order], mask[edge][:, None], batch, height * width, heads, device)


def _tables(
    token: Tensor, mask: Tensor, batch: int, tokens: int, heads: int, device: torch.device
) -> WindowLayout:
    """Build the tables from ``token``, nW×N: index of an image's token in each slot, or -1."""
    image, head = torch.arange(batch), torch.arange(heads)
    # rows: part (q, k, v) × image × window × head × slot
    slots = token[None, None, :, None] + image[None, :, None, None, None] * tokens
    part = torch.arange(3).view(3, 1, 1, 1, 1)
    rows = (slots * 3 + part) * heads + head[None, None, None, :, None]
    padding = (token < 0)[None, None, :, None].expand(rows.shape).flatten()
    rows = rows.flatten()
    rows_back = torch.empty(batch * tokens * 3 * heads, dtype=torch.long)
    rows_back[rows[~padding]] = (~padding).nonzero().flatten()
    # Attended tokens have the order of the queries, the first third of rows: invert that.
    back = rows_back.view(batch * tokens, 3, heads)[:, 0].flatten()
    return WindowLayout(
        batch=batch,
        windows=len(token),
        rows=rows.masked_fill(padding, 0).to(device),
        padding=padding.nonzero().flatten().to(device),
        back=back.to(device),
        rows_back=rows_back.to(device),
        edge_mask=mask.to(device),
    )


def to_windows(projected: Tensor, bias: Tensor | None, layout: WindowLayout, heads: int) -> Tensor:
    """Sort projected tokens into queries, keys and values by window and head.

    Args:
        projected: B×HW×3C, the projected tokens.
        bias: 3C, bias of the projection, to which the zeros of padding are projected.
        layout: tables of B maps.
        heads: number of attention heads; C is divided among them.

    Returns:
        3×(B·nW)×heads×N×(C/heads).
    """
    batch, _, width = projected.shape
    if bias is None:
        bias = projected.new_zeros(width)
    rows = _ToWindows.apply(
        projected.reshape(-1, width // (3 * heads)), bias.to(projected.dtype), layout
    )
    return rows.view(3, batch * layout.windows, heads, -1, width // (3 * heads))


def from_windows(attended: Tensor, layout: WindowLayout) -> Tensor:
    """Move (B·nW)×heads×N×D, sorted by window and head, back to maps: (B·HW)×(heads·D)."""
    _, heads, _, width = attended.shape
    rows = _FromWindows.apply(attended.reshape(-1, width), layout)
    return rows.view(-1, heads * width)


class _ToWindows(torch.autograd.Function):
    """Gather rows by table. The gradient gathers by the inverse table; autograd's would scatter."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout, ctx.bias_shape = layout, bias.shape
        found = F.embedding(layout.rows, rows)
        if len(layout.padding):
            bias_rows = bias.view(-1, rows.shape[1])
            found[layout.padding] = bias_rows[_bias_rows(layout, len(bias_rows))]
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        layout: WindowLayout = ctx.layout
        grad = grad.contiguous()
        bias_grad = grad.new_zeros(ctx.bias_shape)
        if len(layout.padding):
            by_row = bias_grad.view(-1, grad.shape[1])
            by_row.index_add_(0, _bias_rows(layout, len(by_row)), grad[layout.padding])
        return F.embedding(layout.rows_back, grad), bias_grad, None


def _bias_rows(layout: WindowLayout, parts: int) -> Tensor:
    """Find the row of the bias, among its ``3·heads`` rows, that each padding slot holds."""
    heads = parts // 3
    size = layout.edge_mask.shape[-1]
    part = layout.padding // (len(layout.rows) // 3)
    return part * heads + layout.padding // size % heads


class _FromWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout, ctx.shape = layout, rows.shape
        return F.embedding(layout.back, rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows = grad.new_zeros(ctx.shape)
        rows[ctx.layout.back] = grad
        return rows, None
