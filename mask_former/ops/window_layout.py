"""Cutting a map of tokens into shifted windows and back (Swin, arXiv 2103.14030), one copy each.

Padding, cyclic shift, partition and the split into heads are all permutations of rows, so their
product is one table of row numbers: tokens are read once and written once on the way in, and once
on the way back. Such a table is of one size; what a graph needs that leaves sizes open stands last.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .symbolic_sizes import plain_size

__all__ = [
    "OpenLayout",
    "WindowLayout",
    "from_windows",
    "open_layout",
    "to_windows",
    "window_layout",
]

_MASKED = -100.0
"""Added to the attention logits of tokens that only the cyclic shift made neighbours (Swin's)."""


@dataclass(frozen=True)
class WindowLayout:
    """Where the tokens of B maps of H×W stand once they are in W windows of N tokens each.

    Windows that need a mask come last within an image. A row is one head's part of a token.
    """

    windows: int
    """W, windows an image."""
    rows: Tensor
    """3·B·W·heads·N: the row of the projected tokens (B·H·W·3·heads rows) that each is read from;
    padding reads any."""
    padding: Tensor
    """Which of those are padding."""
    back: Tensor
    """B·H·W·heads: the row of the windows that each row of the map is read from."""
    rows_back: Tensor
    """B·H·W·3·heads: the inverse of ``rows``."""
    edge_mask: Tensor
    """E×1×N×N: 0 or -100, of the last E windows of an image; E is 0 without a shift."""


@lru_cache(maxsize=64)
def window_layout(
    batch: int, height: int, width: int, heads: int, size: int, shift: int, device: torch.device
) -> WindowLayout:
    """The layout of ``batch`` maps of ``height`` × ``width`` tokens in windows of ``size``².

    The map is padded on the right and at the bottom to whole windows and rolled up and left by
    ``shift`` tokens.
    """
    tall, wide = -(-height // size), -(-width // size)
    token = torch.full((tall * size, wide * size), -1)
    token[:height, :width] = torch.arange(height * width).view(height, width)
    # Tokens attend to each other where they come from the same side of the map.
    region = torch.zeros_like(token)
    if shift:
        token = token.roll((-shift, -shift), (0, 1))
        rows, columns = (_side(torch.arange(n * size), n * size, size, shift) for n in (tall, wide))
        region = 3 * rows[:, None] + columns
    token, region = (
        one.view(tall, size, wide, size).transpose(1, 2).reshape(-1, size * size)
        for one in (token, region)
    )
    apart = region[:, :, None] != region[:, None]
    edge = apart.flatten(1).any(1)
    order = torch.cat([(~edge).nonzero(), edge.nonzero()]).flatten()
    token = token[order]
    mask = torch.zeros(apart[edge].shape).masked_fill_(apart[edge], _MASKED)
    return _tables(token, mask[:, None], batch, height * width, heads, device)


def _tables(
    token: Tensor, mask: Tensor, batch: int, tokens: int, heads: int, device: torch.device
) -> WindowLayout:
    """``token``: W×N, the token of an image at each place, -1 for padding."""
    windows = len(token)
    image, head = torch.arange(batch), torch.arange(heads)
    # rows: part (q, k, v) × image × window × head × place
    places = token[None, None, :, None] + image[None, :, None, None, None] * tokens
    part = torch.arange(3).view(3, 1, 1, 1, 1)
    rows = (places * 3 + part) * heads + head[None, None, None, :, None]
    padding = (token < 0)[None, None, :, None].expand(rows.shape).flatten()
    rows = rows.flatten()
    rows_back = torch.empty(batch * tokens * 3 * heads, dtype=torch.long)
    rows_back[rows[~padding]] = (~padding).nonzero().flatten()
    # The inverse of the first third, counted from its own start, finds attended tokens again.
    back = rows_back.view(batch * tokens, 3, heads)[:, 0].flatten()
    return WindowLayout(
        windows=windows,
        rows=rows.masked_fill(padding, 0).to(device),
        padding=padding.nonzero().flatten().to(device),
        back=back.to(device),
        rows_back=rows_back.to(device),
        edge_mask=mask.to(device),
    )


def to_windows(projected: Tensor, bias: Tensor | None, layout: WindowLayout, heads: int) -> Tensor:
    """Queries, keys and values by window and head.

    Args:
        projected: B×HW×3C, the projected tokens.
        bias: 3C, that projection's bias: what padding, being zeros, is projected to.
        layout: of B maps.
        heads: of the attention; C is divided among them.

    Returns:
        3×(B·W)×heads×N×(C/heads).
    """
    batch, _, width = projected.shape
    if bias is None:
        bias = projected.new_zeros(width)
    rows = _ToWindows.apply(
        projected.reshape(-1, width // (3 * heads)), bias.to(projected.dtype), layout
    )
    return rows.view(3, batch * layout.windows, heads, -1, width // (3 * heads))


def from_windows(attended: Tensor, layout: WindowLayout) -> Tensor:
    """(B·W)×heads×N×D by window and head back to the maps: (B·HW)×(heads·D)."""
    _, heads, _, width = attended.shape
    rows = _FromWindows.apply(attended.reshape(-1, width), layout)
    return rows.view(-1, heads * width)


class _ToWindows(torch.autograd.Function):
    """Rows by table; its gradient is the inverse table's, where autograd would scatter and add."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, bias: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout, ctx.bias_shape = layout, bias.shape
        found = F.embedding(layout.rows, rows)
        if len(layout.padding):
            found[layout.padding] = _of_padding(bias, layout, rows.shape[1])
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        layout: WindowLayout = ctx.layout
        grad = grad.contiguous()
        of_bias = grad.new_zeros(ctx.bias_shape)
        if len(layout.padding):
            by_row = of_bias.view(-1, grad.shape[1])
            by_row.index_add_(0, _bias_rows(layout, len(by_row)), grad[layout.padding])
        return F.embedding(layout.rows_back, grad), of_bias, None


def _bias_rows(layout: WindowLayout, parts: int) -> Tensor:
    """Which of the ``3·heads`` rows of the bias each row of padding holds."""
    heads = parts // 3
    size = layout.edge_mask.shape[-1]
    part = layout.padding // (len(layout.rows) // 3)
    return part * heads + layout.padding // size % heads


def _of_padding(bias: Tensor, layout: WindowLayout, width: int) -> Tensor:
    rows = bias.view(-1, width)
    return rows[_bias_rows(layout, len(rows))]


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


class OpenLayout(NamedTuple):
    """As :class:`WindowLayout`, of whole tokens and windows in order, for a graph of open sizes."""

    rows: Tensor
    """B·W·N: the token (of B·H·W) at each place; padding reads any."""
    padding: Tensor
    """B·W·N bools."""
    back: Tensor
    """B·H·W: where each token stands."""
    mask: Tensor | None
    """B·W×1×N×N: 0 or -100; None without a shift."""


def open_layout(
    batch: int, height: int, width: int, size: int, shift: int, device: torch.device
) -> OpenLayout:
    """The tables, by arithmetic alone: no step asks what the sizes are or splits a product of them.

    Sizes may be symbols (``torch.export``) or tensors (``torch.jit.trace``).
    """
    tall, wide = (plain_size((side + size - 1) // size) for side in (height, width))
    number = torch.arange(batch * tall * wide * size * size, device=device)
    window, place = _divide(number, size * size)
    image, window = _divide(window, tall * wide)
    (row, column), (y, x) = _divide(window, wide), _divide(place, size)
    y, x = row * size + y, column * size + x
    mask = None
    if shift:
        sides = (_side(at, n * size, size, shift) for at, n in ((y, tall), (x, wide)))
        region = torch.stack(tuple(sides)).view(2, -1, size * size)
        apart = (region[..., None] != region[..., None, :]).any(0)
        mask = torch.zeros_like(apart, dtype=torch.float32).masked_fill(apart, _MASKED)[:, None]
        y, x = _divide(y + shift, tall * size)[1], _divide(x + shift, wide * size)[1]
    padding = (y >= height) | (x >= width)
    rows = ((image * height + y) * width + x).masked_fill(padding, 0)

    number = torch.arange(batch * height * width, device=device)
    image, token = _divide(number, height * width)
    y, x = _divide(token, width)
    if shift:
        y = _divide(y + (tall * size - shift), tall * size)[1]
        x = _divide(x + (wide * size - shift), wide * size)[1]
    (row, y), (column, x) = _divide(y, size), _divide(x, size)
    back = (((image * tall + row) * wide + column) * size + y) * size + x
    return OpenLayout(rows, padding, back, mask)


def _divide(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Quotient and rest; ONNX has no ``%`` for a number that is not known yet."""
    quotient = x // by
    return quotient, x - quotient * by


def _side(at: Tensor, end: int, size: int, shift: int) -> Tensor:
    """Along one axis of length ``end``, which side of the shifted map places come from: 0 … 2."""
    return (at >= end - size).long() + (at >= end - shift)
