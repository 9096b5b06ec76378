"""Sums over the pixels of every prediction and target, from which matching costs are computed.

Plain version: the formulas for one target after another (:func:`pairwise_mask_sums_reference`).
Fast version: one matrix product for each tile of pixels gives both terms of all pairs
(:func:`pairwise_mask_sums`). It avoids all R×P and N×P tensors in fp32 (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .mask_sums import (
    MaskSums,
    MaskTerm,
    leave_out,
    point_mask_sums_reference,
    tile_elements,
    to_float,
)
from .reference import is_reference

__all__ = ["pairwise_mask_sums", "pairwise_mask_sums_reference"]

# A mask term is linear in the target: f(x, t) = f(x, 0) + (f(x, 1) - f(x, 0))·t, so its sum over
# pixels is Σ outside + more @ t. With logits x = (2, -2), f(x, 0) = (2.13, 0.13) and
# more = (-2, 2) for the cross-entropy; the target t = (1, 0) costs 2.26 - 2 = 0.26, which is
# f(2, 1) + f(-2, 0) = 0.13 + 0.13.


def pairwise_mask_sums(
    term: MaskTerm, logits: Sequence[Tensor], targets: Tensor, valid: Tensor | None = None
) -> MaskSums:
    """Compute the sums of all pairs tile by tile.

    Args:
        term: the mask term.
        logits: mask logits at P pixels, in parts R₁×P, R₂×P, … of any float type.
        targets: N×P, bool, or fractions in [0, 1], fp32.
        valid: P, bool: the pixels to use. None: all.

    Returns:
        Sums in fp32, for R = R₁ + R₂ + … predictions and N targets: ``term`` and ``overlap`` R×N,
        ``predicted`` R×1, ``target`` N.
    """
    if is_reference():
        return pairwise_mask_sums_reference(term, logits, targets, valid)
    rows = sum(len(part) for part in logits)
    pixels = targets.shape[1]
    product = torch.zeros(2 * rows, len(targets), device=targets.device)
    outside, predicted = torch.zeros(2, rows, 1, device=targets.device)
    area = torch.zeros(len(targets), device=targets.device)
    step = max(1, tile_elements(targets.device) // max(1, rows))
    for start in range(0, pixels, step):
        tile = slice(start, start + step)
        x = torch.cat([part[:, tile] for part in logits]).float()
        t = targets[:, tile]
        if valid is not None:
            x, t = leave_out(x, valid[tile]), t * valid[tile]
        t = to_float(t) if t.dtype == torch.bool else t
        probability = x.sigmoid()
        cost, more = term.outside_and_more(x, probability)
        product.addmm_(torch.cat([more, probability]), t.T)
        outside += cost.sum(1, keepdim=True)
        predicted += probability.sum(1, keepdim=True)
        area += t.sum(1)
    more, overlap = product.view(2, rows, len(targets))
    counted = pixels if valid is None else valid.sum().clamp(min=1)
    return MaskSums(outside + more, predicted, overlap, area, counted)


def pairwise_mask_sums_reference(
    term: MaskTerm, logits: Sequence[Tensor], targets: Tensor, valid: Tensor | None = None
) -> MaskSums:
    """Compute :func:`pairwise_mask_sums` by the formulas, one target after another."""
    x = torch.cat(list(logits)).float()
    counts = None if valid is None else valid.expand_as(x)
    no_target = point_mask_sums_reference(term, x, torch.zeros_like(x), counts)
    columns = [
        point_mask_sums_reference(term, x, target.float().expand_as(x), counts)
        for target in targets
    ]
    empty = [x.new_zeros(len(x), 0)]  # because torch.cat needs a tensor
    total = torch.cat([*empty, *(column.term[:, None] for column in columns)], 1)
    overlap = torch.cat([*empty, *(column.overlap[:, None] for column in columns)], 1)
    weights = targets.float() if valid is None else targets.float() * valid
    counted = x.shape[1] if valid is None else valid.sum().clamp(min=1)
    return MaskSums(total, no_target.predicted[:, None], overlap, weights.sum(1), counted)
