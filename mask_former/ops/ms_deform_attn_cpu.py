"""Multi-scale deformable attention on a CPU, by ``embedding_bag``.

Reference: :func:`.ms_deform_attn.ms_deform_attn_reference`. Fast: :func:`forward` and
:func:`backward`, one head at a time, so that intermediate results fit the cache.

Saves: no sample is stored. An output is a weighted sum of rows of a table, four for each point,
which ``embedding_bag`` computes in one pass. A gradient of the table is such a sum, too, once the
points are sorted by cell. The backward pass needs nothing but the inputs (docs/performance.md,
"Deformable attention").
"""

# Example: one level of 3×4 cells, one point at (0.3, 0.5) of the map with weight 0.8:
#     x = 0.3·4 - 0.5 = 0.7, y = 0.5·3 - 0.5 = 1: columns 0 and 1 (.3 .7), rows 1 and 2 (1 0)
# The map gets a margin of 2 zero cells on all sides and becomes a table of 7·8 rows. The cell of
# row 1, column 0 is row (1+2)·8 + 0+2 = 26, so the output is the sum of 4 rows of the table:
#     rows 26 27 34 35, weights 0.8·(.3 .7 0 0)
# A point farther outside is moved into the margin: its sample is 0, and so are its gradients.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward"]

_MARGIN = 2
"""Zero cells on each side of a map, so that all cells around a point in the margin are zero."""


class _Level(NamedTuple):
    """One level's place in the tables."""

    height: int
    width: int
    start: int

    @property
    def stride(self) -> int:
        """Rows of the table from a cell to the one below it."""
        return self.width + 2 * _MARGIN

    @property
    def end(self) -> int:
        return self.start + (self.height + 2 * _MARGIN) * self.stride

    def cells(self, table: Tensor, up: int = 0, left: int = 0) -> Tensor:
        """View the level …×h×w×D in a table …×rows×D, or the cells above and to the left of it."""
        grid = table[..., self.start : self.end, :].unflatten(-2, (-1, self.stride))
        top, side = _MARGIN - up, _MARGIN - left
        return grid[..., top : top + self.height, side : side + self.width, :]


class _Points(NamedTuple):
    """The points of one head: the cells around them, and the shares of these cells."""

    cell: Tensor
    """Q×LP, int32: row in the table of the cell above and to the left."""
    x: Tensor
    """Q×LP: share of the cells on the right, in [0, 1)."""
    y: Tensor
    """Q×LP: share of the cells below."""


def _levels(sizes: Sequence[tuple[int, int]]) -> list[_Level]:
    levels: list[_Level] = []
    for height, width in sizes:
        levels.append(_Level(height, width, levels[-1].end if levels else 0))
    return levels


def _tables(value: Tensor, levels: list[_Level]) -> Tensor:
    """Copy the cells N×S×M×D into tables N×M×rows×D with margins."""
    batch, _, heads, width = value.shape
    table = value.new_zeros(batch, heads, levels[-1].end, width)
    for level, cells in zip(levels, _split(value, levels), strict=True):
        level.cells(table).copy_(cells.permute(0, 3, 1, 2, 4))
    return table


def _split(value: Tensor, levels: list[_Level]) -> list[Tensor]:
    """Cut the cells N×S×… into views N×h×w×… of the levels."""
    parts = value.split([level.height * level.width for level in levels], 1)
    sizes = [(level.height, level.width) for level in levels]
    return [part.unflatten(1, size) for part, size in zip(parts, sizes, strict=True)]


def _locate(locations: Tensor, levels: list[_Level]) -> _Points:
    """Find the cells around the points Q×L×P×2 of one head."""
    points = locations.shape[2]
    sides = locations.new_tensor([(level.width, level.height) for level in levels])
    numbers = torch.tensor([(level.start, level.stride) for level in levels], dtype=torch.int32)
    start, stride = numbers.repeat_interleave(points, 0).unbind(1)
    (x, left), (y, top) = (
        _split_coordinate(locations[..., axis], sides[:, axis, None]) for axis in (0, 1)
    )
    return _Points(start + (top + _MARGIN) * stride + (left + _MARGIN), x, y)


def _split_coordinate(locations: Tensor, side: Tensor) -> tuple[Tensor, Tensor]:
    """Split coordinates Q×L×P, in fractions of ``side``, into a share in [0, 1) and a cell."""
    at = torch.minimum(locations * side - 0.5, side).clamp_(min=-_MARGIN).flatten(1)
    before = at.floor()
    return at - before, before.nan_to_num_(0.0).int()  # NaN stays in the share


def _rows(points: _Points, levels: list[_Level]) -> Tensor:
    """Return the rows of the four cells around each point: Q×(4·L·P), int32."""
    count = points.cell.shape[1] // len(levels)
    stride = torch.tensor([level.stride for level in levels], dtype=torch.int32)
    below = stride.repeat_interleave(count)
    steps = torch.stack([0 * below, 0 * below + 1, below, below + 1])
    return (points.cell[:, None] + steps).flatten(1)


def _weights(points: _Points, weights: Tensor) -> Tensor:
    """Share the weights Q×LP among the four cells: Q×4×LP."""
    shared = weights.new_empty(len(weights), 4, weights.shape[1])
    upper_left, upper_right, left, right = shared.unbind(1)
    on_right = weights * points.x
    on_left = weights - on_right
    torch.mul(on_right, points.y, out=right)
    torch.mul(on_left, points.y, out=left)
    torch.sub(on_right, right, out=upper_right)
    torch.sub(on_left, left, out=upper_left)
    return shared


def forward(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Compute the output N×Q×(M·D); see :func:`.ms_deform_attn.ms_deform_attn`."""
    batch, queries, heads = locations.shape[:3]
    levels = _levels(sizes)
    output = value.new_empty(batch, queries, heads, value.shape[3])
    for image, tables in enumerate(_tables(value, levels)):
        for head, table in enumerate(tables):
            points = _locate(locations[image, :, head], levels)
            shared = _weights(points, weights[image, :, head].flatten(1))
            output[image, :, head] = F.embedding_bag(
                _rows(points, levels), table, mode="sum", per_sample_weights=shared.flatten(1)
            )
    return output.flatten(2)


def backward(
    value: Tensor,
    sizes: Sequence[tuple[int, int]],
    locations: Tensor,
    weights: Tensor,
    grad: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of value, locations and weights from that of the output."""
    levels = _levels(sizes)
    grad_value = torch.zeros_like(value)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    grad_by_head = grad.unflatten(2, (value.shape[2], -1)).permute(0, 2, 1, 3).contiguous()
    for image, tables in enumerate(_tables(value, levels)):
        grad_cells = _split(grad_value[image : image + 1], levels)
        for head, table in enumerate(tables):
            at = (image, slice(None), head)
            points, grad_output = _locate(locations[at], levels), grad_by_head[image, head]
            products = _products(table, _rows(points, levels), grad_output)
            grad_weights[at], grad_locations[at] = _grad_of_points(
                points, weights[at], products, levels
            )
            shared = _weights(points, weights[at].flatten(1))
            of_head = [cells[0, :, :, head] for cells in grad_cells]
            _add_grad_of_cells(of_head, levels, points, shared, grad_output)
    return grad_value, grad_locations, grad_weights


def _products(table: Tensor, rows: Tensor, grad: Tensor) -> Tensor:
    """Multiply the rows Q×4LP of the table by their query's gradient Q×D: Q×4×LP."""
    queries, count = rows.shape
    first = torch.arange(0, rows.numel(), count, dtype=torch.int32)
    query = torch.arange(queries, dtype=torch.int32).repeat_interleave(count)
    products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad, table, rows.flatten(), first, query, 0
    )
    return products.view(queries, 4, -1)


def _grad_of_points(
    points: _Points, weights: Tensor, products: Tensor, levels: list[_Level]
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the weights Q×L×P and of the locations Q×L×P×2."""
    upper_left, upper_right, left, right = products.unbind(1)
    upper, lower = torch.lerp(upper_left, upper_right, points.x), torch.lerp(left, right, points.x)
    along_x = torch.lerp(upper_right - upper_left, right - left, points.y)
    slopes = torch.stack([along_x, lower - upper], -1).view(*weights.shape, 2)
    sides = weights.new_tensor([(level.width, level.height) for level in levels])[:, None]
    sample = torch.lerp(upper, lower, points.y).view_as(weights)
    return sample, slopes * weights[..., None] * sides


def _add_grad_of_cells(
    cells: list[Tensor], levels: list[_Level], points: _Points, shared: Tensor, grad: Tensor
) -> None:
    """Add the gradient of each level's cells h×w×D: the gradients of the queries, by weight."""
    cell, order = points.cell.flatten().sort()
    query = order.div(points.cell.shape[1], rounding_mode="floor").int()
    rows = torch.arange(levels[-1].end, dtype=torch.int32)
    first = torch.searchsorted(cell, rows, out_int32=True)
    for corner, (up, left) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
        weights = shared[:, corner].flatten()[order]
        sums = F.embedding_bag(query, grad, first, mode="sum", per_sample_weights=weights)
        for level, grad_cells in zip(levels, cells, strict=True):
            grad_cells += level.cells(sums, up, left)
