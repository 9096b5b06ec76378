"""Sums over the pixels of matched pairs of masks, from which the mask losses are computed.

Plain version: upsample the logits of every pair to the size of the targets and sum
(:func:`dense_mask_sums_reference`), or sum over points (:func:`point_mask_sums_reference`).
Fast version: :func:`dense_mask_sums` upsamples a few rows of a few pairs at a time, and again in
the backward pass; :func:`point_mask_sums` has a hand-written gradient.
It saves all M×H×W tensors, three of which autograd would keep (docs/performance.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .reference import is_reference

__all__ = [
    "MaskSums",
    "MaskTerm",
    "Section",
    "dense_mask_sums",
    "dense_mask_sums_reference",
    "leave_out",
    "point_mask_sums",
    "point_mask_sums_reference",
    "softplus",
    "tile_elements",
    "to_float",
]

_BAND = 32
"""Rows of a full-size mask that are computed at a time on a CPU, from the few they lie between."""
_CERTAINLY_OUTSIDE = -1e4
"""A logit whose sigmoid, and every term of it outside a mask, is exactly 0 in fp32."""


class MaskTerm(Protocol):
    """The loss of one pixel: its plain formula, and what the kernels need of it.

    With s = x outside a mask and s = -x inside it, ``wrong`` = σ(s) is the probability of the
    wrong answer, ``right`` = 1 - wrong, and ``entropy`` = softplus(s) the cross-entropy.
    """

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each element, given targets in [0, 1]: the plain formula."""

    def outside_and_more(self, logits: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss outside a mask, and by how much it is larger inside."""

    def total(self, entropy: Tensor, wrong: Tensor, targets: Tensor) -> Tensor:
        """Sum the loss over the last axis, for targets 0 or 1; may overwrite ``entropy``."""

    def slope(self, entropy: Tensor, wrong: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        """Compute the derivative of the loss of each element, for targets 0 or 1.

        It is divided by ``wrong``, by which the caller multiplies.
        """


class MaskSums(NamedTuple):
    """Sums over the pixels that count; t is the target, p = σ(logit). M values of matched pairs."""

    term: Tensor
    """Σ of the mask term."""
    predicted: Tensor
    """Σ p."""
    overlap: Tensor
    """Σ p·t."""
    target: Tensor
    """Σ t."""
    pixels: Tensor | int
    """The number of pixels that count, at least 1: one number, or one for each pair."""


class Section(NamedTuple):
    """The matched pairs of one layer and one image."""

    layer: int
    image: int
    queries: Tensor
    """int64, all different."""
    targets: Tensor
    """int64, of the same length: the index in its image of the target of each query."""


def tile_elements(device: torch.device) -> int:
    """Return how many elements of a large tensor are worked on at a time.

    On a CPU each thread's share of a few such tiles fits its cache; on a GPU they are large enough
    to fill it, and small compared with its memory.
    """
    return torch.get_num_threads() << 17 if device.type == "cpu" else 1 << 22


def to_float(masks: Tensor) -> Tensor:
    """Convert bool masks to fp32; several times as fast on a CPU as ``masks.float()``."""
    return masks.view(torch.uint8).float()


def leave_out(logits: Tensor, valid: Tensor) -> Tensor:
    """Replace mask logits so that they add nothing to any sum where ``valid`` is False.

    They become "certainly outside" there: with a target that is 0 there too, every mask term, dice
    term and gradient is exactly 0. ``valid`` is bool and is broadcast.
    """
    return logits.masked_fill(~valid, _CERTAINLY_OUTSIDE)


def softplus(logits: Tensor, other: Tensor) -> Tensor:
    """Compute ``log(1 + exp x)``, given ``other = σ(-x)``, within 1e-6 of ``F.softplus`` in fp32.

    It is ``-log σ(-x)``, and ``x`` itself where σ(-x) underflows: 5 times as fast on a CPU, where
    torch has vector code for ``log`` and none for ``log1p``.
    """
    tiny = torch.finfo(other.dtype).tiny
    return torch.maximum(other.clamp(min=tiny).log_().neg_(), logits)


def dense_mask_sums(
    term: MaskTerm,
    logits: Sequence[Tensor],
    masks: Sequence[Tensor],
    sections: Sequence[Section],
    valid: Sequence[Tensor] | None = None,
) -> MaskSums:
    """Sum over all pixels of the targets, with logits upsampled (bilinear) to their size.

    A few rows of a few pairs are upsampled at a time, and again in the backward pass: nothing but
    the logits themselves is kept for it.

    Args:
        term: the mask term.
        logits: L tensors B×Q×h×w, mask logits of each layer, of any float type.
        masks: B tensors N×H×W, bool, the targets of each image; one H×W for all.
        sections: the matched pairs, M in all.
        valid: B tensors H×W, bool; pixels where it is False do not count. None: all count.

    Returns:
        Sums of the M pairs in the order of ``sections``. Every tensor of ``logits`` gets a
        gradient, also if it has no pair.
    """
    if is_reference():
        return dense_mask_sums_reference(term, logits, masks, sections, valid)
    (height, width), size = logits[0].shape[-2:], masks[0].shape[-2:]
    rows, columns = _bands(height, size[0], logits[0]), _bands(width, size[1], logits[0])
    plan = _Plan(term, sections, masks, valid, rows, columns)
    total, predicted, overlap, area = _DenseSums.apply(plan, *logits)
    return MaskSums(total, predicted, overlap, area, plan.counted_pixels())


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


def point_mask_sums(
    term: MaskTerm, logits: Tensor, masks: Tensor, valid: Tensor | None = None
) -> MaskSums:
    """Sum over points, with a gradient that keeps the logits and the targets and nothing else.

    Args:
        term: the mask term.
        logits: M×P, fp32, mask logits of M pairs at P points each.
        masks: M×P, bool, the targets there.
        valid: M×P, bool; points where it is False do not count. None: all count.
    """
    if is_reference():
        return point_mask_sums_reference(term, logits, masks, valid)
    pixels: Tensor | int = logits.shape[1]
    if valid is not None:
        logits, masks, pixels = leave_out(logits, valid), masks & valid, _at_least_one(valid)
    total, predicted, overlap, area = _PointSums.apply(term, logits, masks)
    return MaskSums(total, predicted, overlap, area, pixels)


def point_mask_sums_reference(
    term: MaskTerm, logits: Tensor, targets: Tensor, valid: Tensor | None = None
) -> MaskSums:
    """Compute :func:`point_mask_sums` by the formulas; ``targets`` may be shares in [0, 1]."""
    targets = targets.to(logits.dtype)
    weights = torch.ones_like(targets) if valid is None else valid.to(targets.dtype)
    probability = logits.sigmoid()
    return MaskSums(
        (weights * term.loss(logits, targets)).sum(1),
        (weights * probability).sum(1),
        (weights * probability * targets).sum(1),
        (weights * targets).sum(1),
        logits.shape[1] if valid is None else _at_least_one(valid),
    )


def _at_least_one(valid: Tensor) -> Tensor:
    """M×P, bool, to the number of points that count in each row, at least 1."""
    return valid.sum(1).clamp(min=1)


# Why bands are enough: with 2 grid rows for 8 full rows (factor 4), full row 3 has its centre at
# (3 + 0.5) / 4 - 0.5 = 0.375 grid rows, so it is 0.625 · row 0 + 0.375 · row 1; rows 0 and 1 lie
# above the first centre and are row 0 itself. The band of full rows 2 and 3 is thus a 2×2 matrix,
# [[0.875, 0.125], [0.625, 0.375]], times the two grid rows, and its transpose is the gradient.


class _Band(NamedTuple):
    """Some rows (or columns) of the full size, interpolated linearly between those of the grid."""

    full: slice
    grid: slice
    """The rows of the grid that they lie between."""
    matrix: Tensor
    """full × grid, the weight of each."""


def _bands(source: int, size: int, like: Tensor) -> list[_Band]:
    """Write ``F.interpolate`` along one axis as matrices; transposed they are its gradient.

    On a CPU, products with them are several times as fast as the backward pass of the
    interpolation, provided that the axis is cut into bands: each row depends on two rows of the
    grid only.
    """
    basis = torch.eye(source, dtype=_full_precision(like), device=like.device)[None]
    matrix = F.interpolate(basis, size, mode="linear", align_corners=False)[0].T
    step = _BAND if like.device.type == "cpu" else size
    bands = []
    for start in range(0, size, step):
        stop = min(start + step, size)
        # one more on either side than the formula gives, in case it is rounded differently
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
    """The pairs to compare, in parts and bands: the same walk forward and backward."""

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
        """Upsample a band: logits and targets, both pairs × pixels of the band."""
        logits = band.matrix @ part.wide[:, band.grid]
        masks = self.masks[part.section.image][part.targets, band.full]
        if self.valid is not None:
            valid = self.valid[part.section.image][band.full]
            logits, masks = leave_out(logits, valid), masks & valid
        return logits.flatten(1), to_float(masks.flatten(1)).to(logits.dtype)

    def counted_pixels(self) -> Tensor | int:
        """Count the pixels that count: one number, or one for each of the M pairs."""
        if self.valid is None:
            return self.masks[0].shape[-2] * self.masks[0].shape[-1]
        counts = [valid.sum().clamp(min=1) for valid in self.valid]
        return torch.cat([counts[s.image].expand(len(s.queries)) for s in self.sections])


class _DenseSums(torch.autograd.Function):
    """Σ term, Σp, Σpt and Σt of each pair at full size: 4×M."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *logits: Tensor) -> Tensor:
        pairs = sum(len(section.queries) for section in plan.sections)
        sums = torch.zeros(4, pairs, dtype=_full_precision(logits[0]), device=logits[0].device)
        for part in plan.parts(logits):
            for band in plan.rows:
                sums[:, part.pairs] += _sums(plan.term, *plan.tile(part, band))
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
                    full = _sums_gradient(plan.term, x, t, upstream[:3, part.pairs, None])
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
    def forward(ctx: Any, term: MaskTerm, logits: Tensor, masks: Tensor) -> Tensor:
        ctx.term = term
        ctx.save_for_backward(logits, masks)
        return _sums(term, logits, to_float(masks))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[None, Tensor, None]:
        logits, masks = ctx.saved_tensors
        return None, _sums_gradient(ctx.term, logits, to_float(masks), upstream[:3, :, None]), None


# Both sides of a mask are one formula, because only s = ±x enters it. For example, x = 2 outside a
# mask (t = 0) and x = -2 inside (t = 1) are equally wrong: s = 2, wrong = 0.88, entropy = 2.13.


def _wrong(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute wrong, right and the entropy: see :class:`MaskTerm`."""
    wrong_logits = torch.addcmul(logits, logits, targets, value=-2)
    right = wrong_logits.neg().sigmoid_()
    entropy = softplus(wrong_logits, right)
    return wrong_logits.sigmoid_(), right, entropy


def _sums(term: MaskTerm, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute Σ term, Σp, Σpt and Σt of M×P logits and 0/1 targets: 4×M."""
    wrong, _, entropy = _wrong(logits, targets)
    total = term.total(entropy, wrong, targets)
    inside, area = torch.linalg.vecdot(wrong, targets), targets.sum(1)
    # p is `wrong` outside the mask and 1 - `wrong` inside
    return torch.stack([total, wrong.sum(1) - 2 * inside + area, area - inside, area])


def _sums_gradient(term: MaskTerm, logits: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """Compute the gradient of M×P logits, given those of Σ term, Σp and Σpt (3×M×1)."""
    of_term, of_predicted, of_overlap = upstream
    wrong, right, entropy = _wrong(logits, targets)
    slope = term.slope(entropy, wrong, right, targets).mul_(of_term)
    # dp/dx = wrong · right on either side of a mask
    return slope.addcmul_(torch.addcmul(of_predicted, of_overlap, targets), right).mul_(wrong)
