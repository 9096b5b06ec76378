"""Sums over the pixels of matched pairs of masks, from which the mask losses are computed.

Plain version: upsample the logits of every pair to the size of the targets and sum
(:func:`dense_mask_sums_reference`). Fast version: :func:`dense_mask_sums` upsamples a few rows of a
few pairs at a time, and again in the backward pass. It avoids all M×H×W tensors, of which autograd
would keep three (docs/performance.md). For sums over points, see
:mod:`mask_former.ops.point_sums`.
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
    "count_valid",
    "dense_mask_sums",
    "dense_mask_sums_reference",
    "leave_out",
    "point_mask_sums_reference",
    "softplus",
    "sums_gradient",
    "sums_of_pairs",
    "tile_elements",
    "to_float",
]

_BAND = 32
"""Rows of full-size masks that a CPU computes at a time, from a few rows of the logits."""
_CERTAINLY_OUTSIDE = -1e4
"""Logit whose sigmoid, and whose mask term outside a mask, are exactly 0 in fp32."""


class MaskTerm(Protocol):
    """Per-pixel loss of masks: its plain formula, and the pieces that the kernels need.

    With s = x for a logit x outside a mask and s = -x inside it, ``wrong`` = σ(s) is the
    probability of the wrong side, ``right`` = 1 - wrong, and ``entropy`` = softplus(s) the
    cross-entropy.
    """

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each element, given targets in [0, 1]: the plain formula."""

    def outside_and_more(self, logits: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        """Compute each element's loss if the target is 0, and its increase if the target is 1."""

    def total(self, entropy: Tensor, wrong: Tensor, targets: Tensor) -> Tensor:
        """Sum the loss over the last axis, for targets 0 or 1; may overwrite ``entropy``."""

    def slope(self, entropy: Tensor, wrong: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        """Compute the derivative of each loss with respect to its logit, divided by ``wrong``.

        Targets are 0 or 1. The caller multiplies by ``wrong``.
        """


class MaskSums(NamedTuple):
    """Sums over valid pixels, with target t and p = σ(logit): M values for M matched pairs."""

    term: Tensor
    """Σ of the mask term."""
    predicted: Tensor
    """Σ p."""
    overlap: Tensor
    """Σ p·t."""
    target: Tensor
    """Σ t."""
    pixels: Tensor | int
    """Number of valid pixels, at least 1: one number, or one for each pair."""


class Section(NamedTuple):
    """The matched pairs of one layer and one image."""

    layer: int
    image: int
    queries: Tensor
    """int64, all different."""
    targets: Tensor
    """int64, of the same length: index, within the image, of each query's target."""


def tile_elements(device: torch.device) -> int:
    """Return the number of elements of a large tensor to process at a time.

    On a CPU, each thread's part of a few such tiles fits its cache; on a GPU, a tile occupies all
    cores and is small compared with the memory.
    """
    return torch.get_num_threads() << 17 if device.type == "cpu" else 1 << 22


def to_float(masks: Tensor) -> Tensor:
    """Convert bool masks to fp32; on a CPU several times as fast as ``masks.float()``."""
    return masks.view(torch.uint8).float()


def leave_out(logits: Tensor, valid: Tensor) -> Tensor:
    """Replace mask logits so that they add nothing to any sum where ``valid`` is False.

    They become "certainly outside": if the targets are 0 there, too, every mask term, dice term and
    gradient is exactly 0. ``valid`` is bool and is broadcast.
    """
    return logits.masked_fill(~valid, _CERTAINLY_OUTSIDE)


def softplus(logits: Tensor, other: Tensor) -> Tensor:
    """Compute ``log(1 + exp x)``, given ``other = σ(-x)``, within 1e-6 of ``F.softplus`` in fp32.

    Computed as ``-log σ(-x)``, or ``x`` where σ(-x) underflows. This is 5 times as fast on a CPU,
    where torch vectorises ``log`` but not ``log1p``.
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


def point_mask_sums_reference(
    term: MaskTerm, logits: Tensor, targets: Tensor, valid: Tensor | None = None
) -> MaskSums:
    """Sum over M×P points by the formulas; see :func:`.point_sums.point_mask_sums`."""
    targets = targets.to(logits.dtype)
    weights = torch.ones_like(targets) if valid is None else valid.to(targets.dtype)
    probability = logits.sigmoid()
    return MaskSums(
        (weights * term.loss(logits, targets)).sum(1),
        (weights * probability).sum(1),
        (weights * probability * targets).sum(1),
        (weights * targets).sum(1),
        logits.shape[1] if valid is None else count_valid(valid),
    )


def count_valid(valid: Tensor) -> Tensor:
    """Count the points to use in each row of M×P, bool; at least 1."""
    return valid.sum(1).clamp(min=1)


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


# One formula serves both sides of a mask, because it depends only on s = ±x. For example, x = 2
# outside a mask (t = 0) and x = -2 inside (t = 1) are equally wrong: s = 2, wrong = 0.88, and
# entropy = 2.13.


def _wrong(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``wrong``, ``right`` and ``entropy``: see :class:`MaskTerm`."""
    wrong_logits = torch.addcmul(logits, logits, targets, value=-2)
    right = wrong_logits.neg().sigmoid_()
    entropy = softplus(wrong_logits, right)
    return wrong_logits.sigmoid_(), right, entropy


def sums_of_pairs(term: MaskTerm, logits: Tensor, targets: Tensor) -> Tensor:
    """Compute Σ term, Σp, Σpt and Σt of M×P logits and 0/1 targets: 4×M."""
    wrong, _, entropy = _wrong(logits, targets)
    total = term.total(entropy, wrong, targets)
    inside, area = torch.linalg.vecdot(wrong, targets), targets.sum(1)
    # p is `wrong` outside the mask and 1 - `wrong` inside
    return torch.stack([total, wrong.sum(1) - 2 * inside + area, area - inside, area])


def sums_gradient(term: MaskTerm, logits: Tensor, targets: Tensor, upstream: Tensor) -> Tensor:
    """Compute the gradient for M×P logits, given those for Σ term, Σp and Σpt (3×M×1)."""
    term_grad, predicted_grad, overlap_grad = upstream
    wrong, right, entropy = _wrong(logits, targets)
    slope = term.slope(entropy, wrong, right, targets).mul_(term_grad)
    # dp/dx = wrong · right on either side of a mask
    return slope.addcmul_(torch.addcmul(predicted_grad, overlap_grad, targets), right).mul_(wrong)
