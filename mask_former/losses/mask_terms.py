"""The mask term: the loss of one pixel of a mask, chosen by ``MODEL.MASK_FORMER.MASK_TERM``.

The matcher and the losses use the same object, so that costs and losses agree. Each term has its
plain formula and the pieces that :mod:`mask_former.ops.mask_sums` needs for its hand-written
gradient; tests verify that both agree.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mask_former.ops.mask_sums import MaskTerm, softplus

__all__ = ["MASK_TERMS", "CrossEntropyTerm", "FocalTerm"]


@dataclass(frozen=True)
class FocalTerm:
    """The focal loss with γ = 2 (arXiv 1708.02002): MaskFormer's mask term.

    It is ``w · wrong² · entropy`` with ``w`` = α inside a mask and 1 - α outside: see
    :class:`~mask_former.ops.mask_sums.MaskTerm` for the symbols.
    """

    alpha: float = 0.25
    """Weight of pixels inside a mask, in [0, 1]."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each element; targets are 0 or 1."""
        probability = logits.sigmoid()
        wrong = probability + targets - 2 * probability * targets
        entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        weight = (1 - self.alpha) + (2 * self.alpha - 1) * targets
        return weight * wrong.pow(2) * entropy

    def outside_and_more(self, logits: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        other = logits.neg().sigmoid_()  # 1 - p, exact where p is nearly 1
        entropy = softplus(logits, other)
        outside = probability.pow(2).mul_(entropy).mul_(1 - self.alpha)
        inside = entropy.sub_(logits).mul_(other.pow_(2)).mul_(self.alpha)
        return outside, inside.sub_(outside)

    def total(self, entropy: Tensor, wrong: Tensor, targets: Tensor) -> Tensor:
        values = entropy.mul_(wrong).mul_(wrong)
        inside = torch.linalg.vecdot(values, targets)
        return (1 - self.alpha) * values.sum(1) + (2 * self.alpha - 1) * inside

    def slope(self, entropy: Tensor, wrong: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        # q = wrong: d/ds [w q² softplus(s)] = w q² (2 (1 - q) softplus(s) + q); w ds/dx = 1 - α - t
        slope = torch.addcmul(wrong, right, entropy, value=2).mul_(wrong)
        return slope.mul_(1 - self.alpha - targets)


@dataclass(frozen=True)
class CrossEntropyTerm:
    """Binary cross-entropy: the mask term of Mask2Former (arXiv 2112.01527, section 3.3)."""

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each element; targets are in [0, 1]."""
        return F.binary_cross_entropy_with_logits(logits, targets, reduction="none")

    def outside_and_more(self, logits: Tensor, probability: Tensor) -> tuple[Tensor, Tensor]:
        return softplus(logits, logits.neg().sigmoid_()), -logits

    def total(self, entropy: Tensor, wrong: Tensor, targets: Tensor) -> Tensor:
        return entropy.sum(1)

    def slope(self, entropy: Tensor, wrong: Tensor, right: Tensor, targets: Tensor) -> Tensor:
        # d/ds softplus(s) = wrong, by which the caller multiplies, and ds/dx = 1 - 2t
        return 1 - 2 * targets


MASK_TERMS: dict[str, type[MaskTerm]] = {"focal": FocalTerm, "cross_entropy": CrossEntropyTerm}
"""Mask terms by the value of ``MODEL.MASK_FORMER.MASK_TERM``."""
