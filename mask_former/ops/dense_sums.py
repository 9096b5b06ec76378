"""Sums over all pixels of matched pairs of masks, with logits upsampled to the targets' size.

Plain version: upsample the logits of every pair to the size of the targets and sum
(:func:`dense_mask_sums_reference`). Fast version: :func:`dense_mask_sums` upsamples a few rows of a
few pairs at a time, and again in the backward pass. It avoids all M×H×W tensors, of which autograd
would keep three (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mask_sums import (
    MaskSums,
    MaskTerm,
    Section,
    leave_out,
    point_mask_sums_reference,
    sums_gradient,
    sums_of_pairs,
    tile_elements,
    to_float,
)
from .reference import is_reference

__all__ = ["dense_mask_sums", "dense_mask_sums_reference"]

_BAND = 32
"""Rows of full-size masks that a CPU computes at a time, from a few rows of the logits."""


def dense_mask_sums(
    term: MaskTerm,
    logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    sections: Sequence[Section],
    valid: Sequence[Tensor] | None = None,
) -> MaskSums:
    """Sum over all pixels of the targets, with logits upsampled (bilinear) to their size.

    A few rows of a few pairs are upsampled at a time, and again in the backward pass, for which
    only the logits are kept.

    Args:
        term: the mask term.
        logits: mask logits of the L layers, B×Q×h×w each, of any float type.
        masks: targets of the B images, N×H×W each, bool; H×W is the same for all.
        sections: the matched pairs, M in all.
        valid: B tensors H×W, bool: the pixels to use. None: all.

    Returns:
        Sums of the M pairs in the order of ``sections``. Every tensor of ``logits`` gets a
        gradient, even if it has no pairs.
    """
    if is_reference():
        return dense_mask_sums_reference(term, logits, masks, sections, valid)
    (height, width), size = logits[0].shape[-2:], masks[0].shape[-2:]
    rows, columns = _bands(height, size[0], logits[0]), _bands(width, size[1], logits[0])
    plan = _Plan(term, sections, masks, valid, rows, columns)
    total, predicted, overlap, area = _DenseSums.apply(plan, *logits)
    return MaskSums(total, predicted, overlap, area, plan.count_pixels())


def dense_mask_sums_reference(
    term: MaskTerm,
    logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    sections: Sequence[Section],
    valid: Sequence[Tensor] | None = None,
) -> MaskSums:
    """Compute :func:`dense_mask_sums` from upsampled logits, with autograd's gradient."""
    size, precision = masks[0].shape[-2:], _full_precision(logits[0])
    unused = sum(layer.sum() * 0 for layer in logits)  # so that every layer gets a gradient
    parts = []
    for layer, image, queries, targets in sections:
        small = logits[layer][image, queries].to(precision)
        full = F.interpolate(small[:, None], size, mode="bilinear", align_corners=False)
        counted = None if valid is None else valid[image].flatten().expand(len(queries), -1)
        chosen = masks[image][targets].flatten(1)
        part = point_mask_sums_reference(term, full.flatten(1), chosen, counted)
        pixels = torch.as_tensor(part.pixels, device=small.device).expand(len(queries))
        parts.append((part.term + unused, *part[1:4], pixels))
    return MaskSums(*(torch.cat(values) for values in zip(*parts, strict=True)))


# Example of a band: with 2 grid rows for 8 full rows (factor 4), full row 3 has its centre at
# (3 + 0.5) / 4 - 0.5 = 0.375 grid rows, so it is 0.625 · grid row 0 + 0.375 · grid row 1; full rows
# 0 and 1 lie above the first centre and equal grid row 0. The band of full rows 2 and 3 is thus the
# matrix [[0.875, 0.125], [0.625, 0.375]] times the two grid rows; its transpose gives the gradient.


class _Band(NamedTuple):
    """Some rows (or columns) of full-size masks, interpolated between those of the logits' grid."""

    full: slice
    grid: slice
    """The rows of the grid that they lie between."""
    matrix: Tensor
    """full × grid, the interpolation weights."""


def _bands(source: int, size: int, like: Tensor) -> list[_Band]:
    """Write ``F.interpolate`` along one axis as matrices; their transposes give its gradient.

    On a CPU, products with them are several times as fast as the backward pass of the
    interpolation, provided that the axis is cut into bands, because each row depends on only two
    rows of the grid.
    """
    basis = torch.eye(source, dtype=_full_precision(like), device=like.device)[None]
    matrix = F.interpolate(basis, size, mode="linear", align_corners=False)[0].T
    step = _BAND if like.device.type == "cpu" else size
    bands = []
    for start in range(0, size, step):
        stop = min(start + step, size)
        # one row more on either side than by the formula, in case F.interpolate rounds otherwise
        grid = slice(
            max(0, int((start + 0.5) * source / size - 0.5) - 1),
            int((stop - 0.5) * source / size - 0.5) + 3,
        )
        bands.append(_Band(slice(start, stop), grid, matrix[start:stop, grid].contiguous()))
    return bands


def _full_precision(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


class _Part(NamedTuple):
    """A few pairs of a section, whose logits have been upsampled to the full width."""

    section: Section
    pairs: slice
    """Their indices among all M pairs."""
    queries: Tensor
    targets: Tensor
    wide: Tensor
    """pairs × h × W, mask logits."""


@dataclass(frozen=True)
class _Plan:
    """The pairs to compare, in parts and bands, which forward and backward pass iterate over."""

    term: MaskTerm
    sections: Sequence[Section]
    masks: Sequence[Tensor]
    valid: Sequence[Tensor] | None
    rows: Sequence[_Band]
    columns: Sequence[_Band]

    def parts(self, logits: Sequence[Tensor]) -> Iterator[_Part]:
        """Cut the pairs into parts whose bands fit a tile."""
        width = self.columns[-1].full.stop
        step = max(1, tile_elements(logits[0].device) // (self.rows[0].full.stop * width))
        first = 0
        for section in filter(lambda section: len(section.queries), self.sections):
            for queries, targets in zip(
                section.queries.split(step), section.targets.split(step), strict=True
            ):
                small = logits[section.layer][section.image, queries].to(_full_precision(logits[0]))
                wide = F.interpolate(small, width, mode="linear", align_corners=False)
                pairs = slice(first, first + len(queries))
                yield _Part(section, pairs, queries, targets, wide)
                first = pairs.stop

    def tile(self, part: _Part, band: _Band) -> tuple[Tensor, Tensor]:
        """Upsample a band. Returns logits and targets, both pairs × pixels of the band."""
        logits = band.matrix @ part.wide[:, band.grid]
        masks = self.masks[part.section.image][part.targets, band.full]
        if self.valid is not None:
            valid = self.valid[part.section.image][band.full]
            logits, masks = leave_out(logits, valid), masks & valid
        return logits.flatten(1), to_float(masks.flatten(1)).to(logits.dtype)

    def count_pixels(self) -> Tensor | int:
        """Count the pixels to use, at least 1: one number, or one for each of the M pairs."""
        if self.valid is None:
            return self.masks[0].shape[-2] * self.masks[0].shape[-1]
        counts = [valid.sum().clamp(min=1) for valid in self.valid]
        return torch.cat([counts[s.image].expand(len(s.queries)) for s in self.sections])


class _DenseSums(torch.autograd.Function):
    """Autograd function for Σ term, Σp, Σpt and Σt of each pair at full size: 4×M."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *logits: Tensor) -> Tensor:
        pairs = sum(len(section.queries) for section in plan.sections)
        sums = torch.zeros(4, pairs, dtype=_full_precision(logits[0]), device=logits[0].device)
        for part in plan.parts(logits):
            for band in plan.rows:
                sums[:, part.pairs] += sums_of_pairs(plan.term, *plan.tile(part, band))
        ctx.plan = plan
        ctx.save_for_backward(*logits)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan, logits = ctx.plan, ctx.saved_tensors
        gradients = [torch.zeros_like(layer) for layer in logits]
        with torch.autocast(upstream.device.type, enabled=False):  # the caller's may be on
            for part in plan.parts(logits):
                wide = torch.zeros_like(part.wide)
                for band in plan.rows:
                    x, t = plan.tile(part, band)
                    full = sums_gradient(plan.term, x, t, upstream[:3, part.pairs, None])
                    full = full.view(len(x), len(band.matrix), -1)
                    wide[:, band.grid] += band.matrix.T @ full
                small = wide.new_zeros(*wide.shape[:2], logits[0].shape[-1])
                for band in plan.columns:
                    small[..., band.grid] += wide[..., band.full] @ band.matrix
                layer = gradients[part.section.layer]
                layer[part.section.image, part.queries] = small.to(layer.dtype)
        return None, *gradients
