"""Sums over the pixels of a pair of masks, from which costs and mask losses are computed.

Plain version: :func:`point_mask_sums_reference`, the formulas. Fast version: :func:`sums_of_pairs`
and :func:`sums_gradient`, which share most of their terms and the memory for them. They are used by
:mod:`.dense_sums` (all pixels), :mod:`.point_sums` and :mod:`.pairwise_sums`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = [
    "MaskSums",
    "MaskTerm",
    "Section",
    "count_valid",
    "leave_out",
    "point_mask_sums_reference",
    "softplus",
    "sums_gradient",
    "sums_of_pairs",
    "tile_elements",
    "to_float",
]

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
