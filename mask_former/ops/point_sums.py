"""Sums over points of matched pairs of masks, from which the mask losses are computed.

Plain version: :func:`.mask_sums.point_mask_sums_reference`, the formulas with autograd's gradient.
Fast version: :func:`point_mask_sums`, with a hand-written gradient, some rows at a time.
It avoids all M×P tensors but the logits and targets themselves; autograd would keep four.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mask_sums import (
    MaskSums,
    MaskTerm,
    count_valid,
    leave_out,
    point_mask_sums_reference,
    sums_gradient,
    sums_of_pairs,
    tile_elements,
    to_float,
)
from .reference import is_reference

__all__ = ["point_mask_sums"]


def point_mask_sums(
    term: MaskTerm, logits: Tensor, targets: Tensor, valid: Tensor | None = None
) -> MaskSums:
    """Sum over points, a few rows at a time; only logits and targets are kept for the gradient.

    Args:
        term: the mask term.
        logits: M×P, fp32, mask logits of M pairs at P points each.
        targets: M×P, targets at these points: bool, or fractions in [0, 1], fp32.
        valid: M×P, bool: the points to use. None: all.
    """
    if is_reference():
        return point_mask_sums_reference(term, logits, targets, valid)
    pixels: Tensor | int = logits.shape[1]
    if valid is not None:
        logits, targets, pixels = leave_out(logits, valid), targets * valid, count_valid(valid)
    total, predicted, overlap, area = _PointSums.apply(term, logits, targets)
    return MaskSums(total, predicted, overlap, area, pixels)


class _PointSums(torch.autograd.Function):
    """Autograd function for the sums of M×P logits and targets; saves only these two."""

    @staticmethod
    def forward(ctx: Any, term: MaskTerm, logits: Tensor, targets: Tensor) -> Tensor:
        ctx.term = term
        ctx.save_for_backward(logits, targets)
        rows = _rows(logits)
        parts = zip(logits.split(rows), targets.split(rows), strict=True)
        return torch.cat(
            [
                sums_of_pairs(term, x, to_float(t))
                if t.dtype == torch.bool
                else _sums_of_fractions(term, x, t)
                for x, t in parts
            ],
            1,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        rows = _rows(logits)
        for part in (slice(start, start + rows) for start in range(0, len(logits), rows)):
            x, t, factors = logits[part], targets[part], upstream[:3, part, None]
            if t.dtype == torch.bool:
                gradient[part] = sums_gradient(ctx.term, x, to_float(t), factors)
            else:  # every sum, and so its gradient, is linear in the target
                outside = sums_gradient(ctx.term, x, torch.zeros_like(x), factors)
                inside = sums_gradient(ctx.term, x, torch.ones_like(x), factors)
                gradient[part] = torch.lerp(outside, inside, t)
        return None, gradient, None


def _rows(logits: Tensor) -> int:
    """Return how many rows of M×P logits fit a tile."""
    return max(1, tile_elements(logits.device) // logits.shape[1])


def _sums_of_fractions(term: MaskTerm, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute Σ term, Σp, Σpt and Σt of M×P logits and targets in [0, 1]: 4×M."""
    probability = logits.sigmoid()
    outside, more = term.outside_and_more(logits, probability)
    total = outside.sum(1) + torch.linalg.vecdot(more, targets)
    overlap = torch.linalg.vecdot(probability, targets)
    return torch.stack([total, probability.sum(1), overlap, targets.sum(1)])
