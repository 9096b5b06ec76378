"""Focal and dice of matched pairs: at all pixels of the targets, or at points."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .mask_losses import ALPHA, dice_of_sums, leave_out, softplus, tile_elements, to_float

__all__ = ["Section", "dense_mask_losses", "point_mask_losses"]

_BAND = 32
"""Rows of a full-size mask that are made at a time on a CPU, from the few that they lie between."""


class Section(NamedTuple):
    """The matched pairs of one layer and one image."""

    layer: int
    image: int
    queries: Tensor
    """int64, all different."""
    targets: Tensor
    """int64, of the same length: which of the image's targets each query answers for."""


def dense_mask_losses(
    logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    sections: Sequence[Section],
    valid: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of matched pairs at the targets' full size.

    The same as enlarging the logits of each pair to H×W (bilinear) and calling
    :func:`~.mask_losses.sigmoid_focal_loss` and :func:`~.mask_losses.dice_loss`, with α 0.25 and
    γ 2, but a few rows of a few pairs are made at a time, and again in the backward pass: nothing
    but the logits themselves is kept for it.

    Args:
        logits: L tensors B×Q×h×w, mask logits of each layer, of any float type.
        masks: B tensors N×H×W, bool, the targets of each image; one H×W for all.
        sections: who answers for whom.
        valid: B tensors H×W, bool; pixels where it is False do not count. None: all count.

    Returns:
        Two tensors of M values, focal and dice, one a pair, in the order of ``sections``. Every
        tensor of ``logits`` gets a gradient, also where it has no pair.
    """
    (height, width), size = logits[0].shape[-2:], masks[0].shape[-2:]
    rows, columns = _bands(height, size[0], logits[0]), _bands(width, size[1], logits[0])
    plan = _Plan(sections, masks, valid, rows, columns)
    focal, predicted, overlap, true = _MaskSums.apply(plan, *logits)
    return focal / plan.counted_pixels(), dice_of_sums(overlap, predicted, true)


def point_mask_losses(
    logits: Tensor, masks: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of matched pairs at points; as :func:`dense_mask_losses`.

    Args:
        logits: M×P, fp32, mask logits of M pairs at P points each.
        masks: M×P, bool, the targets there.
        valid: M×P, bool; points where it is False do not count. None: all count.

    Returns:
        Two tensors of M values, focal and dice.
    """
    counted: Tensor | int = logits.shape[1]
    if valid is not None:
        logits, masks, counted = leave_out(logits, valid), masks & valid, valid.sum(1).clamp(min=1)
    focal, predicted, overlap, true = _PointSums.apply(logits, masks)
    return focal / counted, dice_of_sums(overlap, predicted, true)


class _Band(NamedTuple):
    """Some rows (or columns) of the full size, linear between those of the grid."""

    full: slice
    grid: slice
    """Those of the grid that they lie between."""
    matrix: Tensor
    """full × grid, the weight of each."""


def _bands(source: int, size: int, like: Tensor) -> list[_Band]:
    """How ``F.interpolate`` resizes one axis, as matrices. Transposed they are its gradient.

    On a CPU, products with them are several times as fast as the interpolation's own backward
    pass, provided that the axis is cut into bands: each row depends on two of the grid only.
    """
    basis = torch.eye(source, dtype=_full_precision(like), device=like.device)[None]
    matrix = F.interpolate(basis, size, mode="linear", align_corners=False)[0].T
    step = _BAND if like.device.type == "cpu" else size
    bands = []
    for start in range(0, size, step):
        stop = min(start + step, size)
        # one more on either side than the formula says, should it be rounded differently
        grid = slice(
            max(0, int((start + 0.5) * source / size - 0.5) - 1),
            int((stop - 0.5) * source / size - 0.5) + 3,
        )
        bands.append(_Band(slice(start, stop), grid, matrix[start:stop, grid].contiguous()))
    return bands


def _full_precision(like: Tensor) -> torch.dtype:
    return torch.float64 if like.dtype == torch.float64 else torch.float32


class _Part(NamedTuple):
    """A few pairs of a section, whose grids have been widened."""

    section: Section
    pairs: slice
    """Which of all M pairs."""
    queries: Tensor
    targets: Tensor
    wide: Tensor
    """pairs × h × W, mask logits."""


@dataclass(frozen=True)
class _Plan:
    """What is to be compared with what; the same walk forward and backward."""

    sections: Sequence[Section]
    masks: Sequence[Tensor]
    valid: Sequence[Tensor] | None
    rows: Sequence[_Band]
    columns: Sequence[_Band]

    def parts(self, logits: Sequence[Tensor]) -> Iterator[_Part]:
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
        """Logits and targets, pairs × pixels of the band."""
        logits = band.matrix @ part.wide[:, band.grid]
        masks = self.masks[part.section.image][part.targets, band.full]
        if self.valid is not None:
            valid = self.valid[part.section.image][band.full]
            logits, masks = leave_out(logits, valid), masks & valid
        return logits.flatten(1), to_float(masks.flatten(1)).to(logits.dtype)

    def counted_pixels(self) -> Tensor | int:
        """How many pixels count in each of the M pairs."""
        if self.valid is None:
            return self.masks[0].shape[-2] * self.masks[0].shape[-1]
        counts = [valid.sum().clamp(min=1) for valid in self.valid]
        return torch.cat([counts[s.image].expand(len(s.queries)) for s in self.sections])


class _MaskSums(torch.autograd.Function):
    """Σ focal, Σp, Σpt and Σt of each pair at full size: 4×M."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *logits: Tensor) -> Tensor:
        pairs = sum(len(section.queries) for section in plan.sections)
        sums = torch.zeros(4, pairs, dtype=_full_precision(logits[0]), device=logits[0].device)
        for part in plan.parts(logits):
            for band in plan.rows:
                sums[:, part.pairs] += _sums(*plan.tile(part, band))
        ctx.plan = plan
        ctx.save_for_backward(*logits)
        return sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        plan, logits = ctx.plan, ctx.saved_tensors
        gradients = [torch.zeros_like(layer) for layer in logits]
        with torch.autocast(upstream.device.type, enabled=False):  # a caller's own, too
            for part in plan.parts(logits):
                wide = torch.zeros_like(part.wide)
                for band in plan.rows:
                    x, t = plan.tile(part, band)
                    full = _sums_gradient(x, t, upstream[:3, part.pairs, None])
                    full = full.view(len(x), len(band.matrix), -1)
                    wide[:, band.grid] += band.matrix.T @ full
                small = wide.new_zeros(*wide.shape[:2], logits[0].shape[-1])
                for band in plan.columns:
                    small[..., band.grid] += wide[..., band.full] @ band.matrix
                layer = gradients[part.section.layer]
                layer[part.section.image, part.queries] = small.to(layer.dtype)
        return None, *gradients


class _PointSums(torch.autograd.Function):
    """The same four sums of M×P logits and bool targets; keeps the two and nothing else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor) -> Tensor:
        ctx.save_for_backward(logits, masks)
        return _sums(logits, to_float(masks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        logits, masks = ctx.saved_tensors
        return _sums_gradient(logits, to_float(masks), upstream[:3, :, None]), None


# With s = x outside the mask and -x inside, the probability of the wrong answer is q = σ(s) and the
# cross-entropy softplus(s): both sides of a mask are one formula.


def _wrong(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, 1 - q and the cross-entropy."""
    wrong_logits = torch.addcmul(logits, logits, truth, value=-2)
    right = wrong_logits.neg().sigmoid_()
    entropy = softplus(wrong_logits, right)
    return wrong_logits.sigmoid_(), right, entropy


def _sums(logits: Tensor, truth: Tensor) -> Tensor:
    """Σ focal, Σp, Σpt and Σt of M×P logits and 0/1 targets: 4×M."""
    wrong, _, entropy = _wrong(logits, truth)
    focal = entropy.mul_(wrong).mul_(wrong)
    weighted = (1 - ALPHA) * focal.sum(1) + (2 * ALPHA - 1) * torch.linalg.vecdot(focal, truth)
    inside, area = torch.linalg.vecdot(wrong, truth), truth.sum(1)
    # p is q outside the mask and 1 - q inside
    return torch.stack([weighted, wrong.sum(1) - 2 * inside + area, area - inside, area])


def _sums_gradient(logits: Tensor, truth: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of M×P logits, given those of Σ focal, Σp and Σpt (3×M×1)."""
    focal, predicted, overlap = upstream
    wrong, right, entropy = _wrong(logits, truth)
    # d/ds [w q² softplus(s)] = w q² (2 (1 - q) softplus(s) + q), and w · ds/dx = 1 - α - t
    slope = torch.addcmul(wrong, right, entropy, value=2).mul_(wrong)
    slope.mul_((1 - ALPHA - truth).mul_(focal))
    # dp/dx = q (1 - q)
    return slope.addcmul_(torch.addcmul(predicted, overlap, truth), right).mul_(wrong)
