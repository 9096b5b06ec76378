"""Losses and matching costs of masks, computed from sums over pixels.

The mask term (focal loss or cross-entropy) is averaged over the valid pixels. The dice loss is that
of V-Net (arXiv 1606.04797) with 1 added to numerator and denominator, as in DETR. Everything is
computed in fp32. The sums come from :mod:`mask_former.ops.dense_sums`,
:mod:`mask_former.ops.point_sums` and :mod:`mask_former.ops.pairwise_sums`.
"""

from __future__ import annotations

from torch import Tensor

from mask_former.ops.mask_sums import MaskSums

__all__ = ["dice_loss", "dice_of_sums", "mask_losses"]


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute ``1 - (2 Σpt + 1) / (Σp + Σt + 1)`` for each pair, with p = σ(logit).

    Args:
        logits: M×P, mask logits at P pixels.
        targets: M×P, float in [0, 1].

    Returns:
        M values in [0, 1).
    """
    probability = logits.float().sigmoid()
    overlap = (probability * targets).sum(1)
    return dice_of_sums(overlap, probability.sum(1), targets.sum(1))


def dice_of_sums(overlap: Tensor, predicted: Tensor, target: Tensor) -> Tensor:
    """Compute ``1 - (2 Σpt + 1) / (Σp + Σt + 1)``, given Σpt, Σp and Σt."""
    return 1 - (2 * overlap + 1) / (predicted + target + 1)


def mask_losses(sums: MaskSums) -> tuple[Tensor, Tensor]:
    """Compute the mean mask term and the dice loss: M each for matched pairs, R×N for all pairs."""
    dice = dice_of_sums(sums.overlap, sums.predicted, sums.target)
    return sums.term / sums.pixels, dice
