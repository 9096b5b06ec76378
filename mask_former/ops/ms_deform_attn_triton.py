"""Multi-scale deformable attention on a GPU, in Triton.

Reference: :func:`.ms_deform_attn.ms_deform_attn_reference`. Fast: :func:`forward` and
:func:`backward`: one program for a block of queries of one head.

Saves: no sample is stored, in either pass, and each pass is one kernel for all levels.
"""

# Example: one level of 3×4 cells, one point at (0.3, 0.5) of the map with weight 0.8:
#     x = 0.3·4 - 0.5 = 0.7, y = 0.5·3 - 0.5 = 1: columns 0 and 1 (.3 .7), rows 1 and 2 (1 0)
#     output   += 0.8·(.3·v[1,0] + .7·v[1,1] + 0·v[2,0] + 0·v[2,1])
#     grad of v[1,1] += 0.8·.7·grad;   grad of the weight += .3·grad·v[1,0] + .7·grad·v[1,1] + …
#     grad of x      += 0.8·4·(grad·v[1,1] - grad·v[1,0]), since y has no share in row 2
# Cells outside the map are masked: they add nothing to any sum.

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["backward", "forward"]

_QUERIES = 32
"""Queries of one program."""


@triton.jit
def _point(locations, weights, at, width, height, used):
    """Return the cell above and to the left of each point, the way to the point, and its weight."""
    x = tl.load(locations + 2 * at, mask=used, other=0) * width - 0.5
    y = tl.load(locations + 2 * at + 1, mask=used, other=0) * height - 0.5
    left, top = tl.floor(x), tl.floor(y)
    return left, top, x - left, y - top, tl.load(weights + at, mask=used, other=0)


@triton.jit
def _corner(start, left, top, x, y, height, width, used, dx: tl.constexpr, dy: tl.constexpr):
    """Return a cell next to each point, whether it is inside the map, and its share."""
    column, row = left + dx, top + dy
    inside = used & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    cell = start + tl.where(inside, row * width + column, 0).to(tl.int32)
    share = (x if dx == 1 else 1 - x) * (y if dy == 1 else 1 - y)
    return cell, inside, share


@triton.jit
def _forward(
    value, sizes, locations, weights, output, cells, queries, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, QUERIES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)
    used, wide = query < queries, channel < channels
    of_query = (image * queries + query) * heads + head
    total = tl.zeros((QUERIES, CHANNELS), dtype=value.dtype.element_ty)
    start = 0
    for level in range(LEVELS):
        height, width = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for point in range(POINTS):
            at = (of_query * LEVELS + level) * POINTS + point
            left, top, x, y, weight = _point(locations, weights, at, width, height, used)
            for corner in tl.static_range(4):
                cell, inside, share = _corner(
                    start, left, top, x, y, height, width, used, corner % 2, corner // 2
                )
                row = ((image * cells + cell) * heads + head) * channels
                mask = inside[:, None] & wide[None, :]
                samples = tl.load(value + row[:, None] + channel[None, :], mask=mask, other=0)
                total += (weight * share)[:, None] * samples
        start += height * width
    at = of_query[:, None] * channels + channel[None, :]
    tl.store(output + at, total, mask=used[:, None] & wide[None, :])


@triton.jit
def _backward(
    value, sizes, locations, weights, grad, grad_value, grad_locations, grad_weights,
    cells, queries, heads, channels,
    LEVELS: tl.constexpr, POINTS: tl.constexpr, QUERIES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    query = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)
    used, wide = query < queries, channel < channels
    of_query = (image * queries + query) * heads + head
    at = of_query[:, None] * channels + channel[None, :]
    grad_output = tl.load(grad + at, mask=used[:, None] & wide[None, :], other=0)
    start = 0
    for level in range(LEVELS):
        height, width = tl.load(sizes + 2 * level), tl.load(sizes + 2 * level + 1)
        for point in range(POINTS):
            at = (of_query * LEVELS + level) * POINTS + point
            left, top, x, y, weight = _point(locations, weights, at, width, height, used)
            sample, along_x, along_y = tl.zeros_like(x), tl.zeros_like(x), tl.zeros_like(x)
            for corner in tl.static_range(4):
                dx: tl.constexpr = corner % 2
                dy: tl.constexpr = corner // 2
                cell, inside, share = _corner(start, left, top, x, y, height, width, used, dx, dy)
                row = ((image * cells + cell) * heads + head) * channels
                mask = inside[:, None] & wide[None, :]
                samples = tl.load(value + row[:, None] + channel[None, :], mask=mask, other=0)
                grad_samples = (weight * share)[:, None] * grad_output
                tl.atomic_add(grad_value + row[:, None] + channel[None, :], grad_samples, mask=mask)
                product = tl.sum(samples * grad_output, 1)
                sample += share * product
                along_x += (2 * dx - 1) * (y if dy == 1 else 1 - y) * product
                along_y += (2 * dy - 1) * (x if dx == 1 else 1 - x) * product
            tl.store(grad_weights + at, sample, mask=used)
            tl.store(grad_locations + 2 * at, along_x * weight * width, mask=used)
            tl.store(grad_locations + 2 * at + 1, along_y * weight * height, mask=used)
        start += height * width


@lru_cache(maxsize=64)
def _on_device(sizes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    """Copy the sizes of the levels to the device, once."""
    return torch.tensor(sizes, dtype=torch.int32, device=device)


def _launch(kernel: Any, sizes: Sequence[tuple[int, int]], *tensors: Tensor) -> None:
    """Run a kernel on value, locations, weights and the tensors that follow them."""
    value, locations = tensors[:2]
    batch, queries, heads, levels, points, _ = locations.shape
    cells, channels = value.shape[1], value.shape[3]
    grid = (triton.cdiv(queries, _QUERIES), batch * heads)
    if not all(grid):
        return
    kernel[grid](
        value, _on_device(tuple(sizes), value.device), *tensors[1:],
        *(cells, queries, heads, channels),
        LEVELS=levels, POINTS=points, QUERIES=_QUERIES, CHANNELS=triton.next_power_of_2(channels),
    )  # fmt: skip


def forward(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Compute the output N×Q×(M·D); see :func:`.ms_deform_attn.ms_deform_attn`."""
    given = [tensor.contiguous() for tensor in (value, locations, weights)]
    output = value.new_empty(*locations.shape[:3], value.shape[3])
    _launch(_forward, sizes, *given, output)
    return output.flatten(2)


def backward(
    value: Tensor,
    sizes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of value, locations and weights from that of the output."""
    given = [tensor.contiguous() for tensor in (value, locations, weights, grad)]
    grad_value, grad_locations, grad_weights = map(torch.zeros_like, given[:3])
    _launch(_backward, sizes, *given, grad_value, grad_locations, grad_weights)
    return grad_value, grad_locations, grad_weights
