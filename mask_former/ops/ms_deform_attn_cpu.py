"""Multi-scale deformable attention on a CPU, by ``embedding_bag``.

Reference: :func:`.ms_deform_attn.ms_deform_attn_reference`. Fast: :func:`forward` and
:func:`backward`, one head at a time, whose map is a table that fits the cache.

Saves: no sample is stored. An output is a weighted sum of rows of the table, four for each point,
which ``embedding_bag`` computes in one pass. A gradient of the table is such a sum, too, once the
points are sorted by cell; the other gradients are products of rows, which ``sampled_addmm``
computes in one pass. The backward pass needs nothing but the inputs (docs/performance.md,
"Deformable attention").
"""

# Example: one level of 3×4 cells, one point at (0.3, 0.5) of the map with weight 0.8:
#     x = 0.3·4 - 0.5 = 0.7, y = 0.5·3 - 0.5 = 1: columns 0 and 1 (.3 .7), rows 1 and 2 (1 0)
# The map gets a margin of 2 zero cells on all sides and becomes a table of 7·8 rows. The cell of
# row 1, column 0 is row (1+2)·8 + 0+2 = 26, so the output is the sum of 4 rows of the table:
#     rows 26 27 34 35, weights 0.8·(.3 .7 0 0)
# A point farther outside is moved into the margin: its sample is 0, and so are its gradients.

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["backward", "forward"]

_MARGIN = 2
"""Zero cells on each side of a map, so that all cells around a point in the margin are zero."""


class _Level(NamedTuple):
    """A level's rows in the table."""

    height: int
    width: int
    start: int
    """First row, in the margin."""

    @property
    def stride(self) -> int:
        """Number of rows of the table from a cell to the one below it."""
        return self.width + 2 * _MARGIN

    @property
    def end(self) -> int:
        """First row of the next level."""
        return self.start + (self.height + 2 * _MARGIN) * self.stride

    def cells(self, table: Tensor, up: int = 0) -> Tensor:
        """View the level …×h×w×D of tables …×rows×D, or the cells that are ``up`` above it."""
        grid = table[..., self.start : self.end, :].unflatten(-2, (-1, self.stride))
        top = _MARGIN - up
        return grid[..., top : top + self.height, _MARGIN:-_MARGIN, :]


class _Points(NamedTuple):
    """The points of one head: the cells around them, and the shares of these cells."""

    row: Tensor
    """Q×LP, int32: row in the table of the cell above and to the left."""
    x: Tensor
    """Q×LP: share of the cells on the right, in [0, 1)."""
    y: Tensor
    """Q×LP: share of the cells below."""


class _Pyramid:
    """The levels, and what depends on nothing but them."""

    def __init__(self, sizes: Sequence[tuple[int, int]], locations: Tensor) -> None:
        """Prepare for ``locations`` N×Q×M×L×P×2."""
        self.levels: list[_Level] = []
        for height, width in sizes:
            start = self.levels[-1].end if self.levels else 0
            self.levels.append(_Level(height, width, start))
        points = locations.shape[4]
        sides = locations.new_tensor([(width, height) for height, width in sizes])
        self.sides = sides.repeat_interleave(points, 0)  # LP×2
        first = [level.start + _MARGIN * (level.stride + 1) for level in self.levels]
        self.first = torch.tensor(first, dtype=torch.int32).repeat_interleave(points)  # LP
        stride = torch.tensor([level.stride for level in self.levels], dtype=torch.int32)
        self.stride = stride.repeat_interleave(points)  # LP
        below = self.stride
        # 4×LP: from the row of a cell to those of the four cells around a point
        self.steps = torch.stack([0 * below, 0 * below + 1, below, below + 1])

    def split(self, value: Tensor) -> list[Tensor]:
        """View the cells S×M×D as the levels M×h×w×D."""
        parts = value.split([level.height * level.width for level in self.levels])
        return [
            part.unflatten(0, (level.height, level.width)).permute(2, 0, 1, 3)
            for part, level in zip(parts, self.levels, strict=True)
        ]

    def tables(self, value: Tensor) -> Tensor:
        """Copy the cells S×M×D into tables with margins, M×rows×D."""
        tables = value.new_zeros(value.shape[1], self.levels[-1].end, value.shape[2])
        for level, cells in zip(self.levels, self.split(value), strict=True):
            level.cells(tables).copy_(cells)
        return tables

    def locate(self, locations: Tensor) -> _Points:
        """Find the cells around the points Q×L×P×2 of a head."""
        sides = self.sides.flatten()
        at = torch.minimum((locations.flatten(1) * sides).sub_(0.5), sides).clamp_(min=-_MARGIN)
        before = at.floor()
        x, y = at.sub_(before).unflatten(1, (-1, 2)).unbind(2)
        cell = before.nan_to_num_(0.0).int().unflatten(1, (-1, 2))  # NaN stays in the shares
        row = torch.addcmul(cell[..., 0], cell[..., 1], self.stride).add_(self.first)
        return _Points(row, x, y)

    def rows(self, points: _Points) -> Tensor:
        """Return the rows of the four cells around each point: Q×4LP, int32."""
        return (points.row[:, None] + self.steps).flatten(1)


def _share(weights: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Divide weights among the cells: upper left, upper right, lower left, lower right."""
    right = weights * x
    left = weights - right
    lower_right, lower_left = right * y, left * y
    return left.sub_(lower_left), right.sub_(lower_right), lower_left, lower_right


def forward(
    value: Tensor, sizes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor
) -> Tensor:
    """Compute the output N×Q×(M·D); see :func:`.ms_deform_attn.ms_deform_attn`."""
    pyramid = _Pyramid(sizes, locations)
    output = value.new_empty(*locations.shape[:3], value.shape[3])
    for image, cells in enumerate(value):
        for head, table in enumerate(pyramid.tables(cells)):
            points = pyramid.locate(locations[image, :, head])
            shared = _share(weights[image, :, head].flatten(1), points.x, points.y)
            output[image, :, head] = F.embedding_bag(
                pyramid.rows(points),
                table,
                mode="sum",
                per_sample_weights=torch.cat(shared, 1),
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
    pyramid = _Pyramid(sizes, locations)
    grad_value, grad_weights = torch.empty_like(value), torch.empty_like(weights)
    grad_locations = torch.empty_like(locations)
    grad = grad.unflatten(2, value.shape[2:])  # N×Q×M×D
    for image, cells in enumerate(value):
        grad_cells = pyramid.split(grad_value[image])
        for head, table in enumerate(pyramid.tables(cells)):
            at = (image, slice(None), head)
            points, of_head = pyramid.locate(locations[at]), weights[at].flatten(1)
            grad_of_head = grad[at].contiguous()
            of_levels = [level[head] for level in grad_cells]
            _set_grad_of_cells(of_levels, pyramid, points, of_head, grad_of_head)
            products = _products(table, pyramid.rows(points), grad_of_head)
            slopes, samples = _slopes(products, points.x, points.y)
            grad_weights[at] = samples.view_as(weights[at])
            by_axis = torch.stack([slope.mul_(of_head) for slope in slopes], 2)
            grad_locations[at] = by_axis.mul_(pyramid.sides).view_as(locations[at])
    return grad_value, grad_locations, grad_weights


def _products(table: Tensor, rows: Tensor, grad: Tensor) -> Tensor:
    """Multiply the rows Q×4LP of the table by the gradients Q×D of their outputs."""
    _warn_of_sparse_tensors()
    first = torch.arange(0, rows.numel() + 1, rows.shape[1], dtype=torch.int32)
    products = grad.new_zeros(rows.numel())
    size = (len(grad), len(table))
    sampled = torch.sparse_csr_tensor(first, rows.flatten(), products, size, check_invariants=False)
    return torch.sparse.sampled_addmm(sampled, grad, table.T, beta=0.0).values().view_as(rows)


@lru_cache
def _warn_of_sparse_tensors() -> None:
    """Let torch give its only warning of sparse tensors, that they are in beta, unseen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.eye(1).to_sparse_csr()


def _slopes(corners: Tensor, x: Tensor, y: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Interpolate between four corners Q×4LP.

    Returns:
        The derivatives with respect to ``x`` and ``y``, and the values: Q×LP each.
    """
    upper, upper_right, lower, lower_right = corners.chunk(4, 1)
    upper_slope, lower_slope = upper_right - upper, lower_right - lower
    upper, lower = torch.addcmul(upper, x, upper_slope), torch.addcmul(lower, x, lower_slope)
    rise = lower.sub_(upper)
    slope = torch.addcmul(upper_slope, y, lower_slope.sub_(upper_slope))
    return (slope, rise), torch.addcmul(upper, y, rise)


def _set_grad_of_cells(
    grad_cells: list[Tensor], pyramid: _Pyramid, points: _Points, weights: Tensor, grad: Tensor
) -> None:
    """Sum the gradients Q×D of the outputs to which a cell contributes, by weight: h×w×D each."""
    row, order = points.row.flatten().sort()
    output = order.int().floor_divide_(weights.shape[1])
    rows = torch.arange(pyramid.levels[-1].end, dtype=torch.int32)
    first = torch.searchsorted(row, rows, out_int32=True)
    in_order = (part.flatten().index_select(0, order) for part in (weights, points.x, points.y))
    upper, upper_right, lower, lower_right = (
        F.embedding_bag(output, grad, first, mode="sum", per_sample_weights=part)
        for part in _share(*in_order)
    )
    upper[1:] += upper_right[:-1]  # from a point's upper left cell to the one on its right
    lower[1:] += lower_right[:-1]
    for level, cells in zip(pyramid.levels, grad_cells, strict=True):
        torch.add(level.cells(upper), level.cells(lower, up=1), out=cells)
