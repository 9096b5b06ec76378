"""Focal and dice between masks: of matched pairs (losses) and of all pairs (matching costs).

The focal loss is that of RetinaNet (arXiv 1708.02002), the dice loss that of V-Net
(arXiv 1606.04797) with 1 added above and below the line, as in DETR. Everything is fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "dense_mask_losses",
    "dice_loss",
    "pairwise_dice_cost",
    "pairwise_focal_cost",
    "sigmoid_focal_loss",
]

_ALPHA = 0.25
_GAMMA = 2.0
_CHUNK_PIXELS = 1 << 17
"""Pixels of matched pairs that are worked on at a time: a few such tensors fit a CPU's cache."""


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = _ALPHA, gamma: float = _GAMMA
) -> Tensor:
    """The focal loss of each pair, averaged over its pixels.

    Args:
        logits: M×P, mask logits at P pixels.
        targets: M×P, float, 0 or 1.
        alpha: the weight of mask pixels; the others weigh ``1 - alpha``.
        gamma: how much confident pixels count less.

    Returns:
        M, each ≥ 0.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    missing = probability + targets - 2 * probability * targets  # 1 - p(truth)
    weight = (1 - alpha) + (2 * alpha - 1) * targets
    return (weight * missing.pow(gamma) * cross_entropy).mean(1)


def dice_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """``1 - (2 Σpt + 1) / (Σp + Σt + 1)`` of each pair.

    Args:
        logits: M×P, mask logits at P pixels.
        targets: M×P, float, 0 or 1.

    Returns:
        M, each in [0, 1).
    """
    probability = logits.float().sigmoid()
    overlap = (probability * targets).sum(1)
    return 1 - (2 * overlap + 1) / (probability.sum(1) + targets.sum(1) + 1)


def dense_mask_losses(logits: Tensor, masks: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and dice loss of matched pairs at the targets' full size.

    The same as enlarging ``logits`` to H×W (bilinear) and calling :func:`sigmoid_focal_loss` and
    :func:`dice_loss`, with α 0.25 and γ 2, but no tensor of M full-size masks is ever held: a few
    pairs at a time are enlarged, and their gradient is brought back to h×w at once.

    Args:
        logits: M×h×w, fp32, mask logits.
        masks: N×H×W, bool, all targets of the batch.
        target: M, the target of each pair.

    Returns:
        Two tensors of M values, focal and dice.
    """
    return _DenseMaskLosses.apply(logits, masks, target)


class _DenseMaskLosses(torch.autograd.Function):
    """Keeps two gradients at h×w for the backward pass, and nothing at H×W."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, masks: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        focal, dice = logits.new_empty(2, len(logits)).unbind()
        grad_focal, grad_dice = torch.empty_like(logits), torch.empty_like(logits)
        rows = _interpolation(logits.shape[1], masks.shape[1], logits)
        columns = _interpolation(logits.shape[2], masks.shape[2], logits)
        pairs = max(1, _CHUNK_PIXELS // (masks.shape[1] * masks.shape[2]))
        for start in range(0, len(logits), pairs):
            chunk = slice(start, start + pairs)
            full = rows @ (logits[chunk] @ columns.T)
            truth = masks[target[chunk]].flatten(1)
            values, gradients = _losses_and_gradients(full.flatten(1), truth)
            focal[chunk], dice[chunk] = values
            for grad, of_full in zip((grad_focal, grad_dice), gradients, strict=True):
                grad[chunk] = (rows.T @ of_full.view_as(full)) @ columns
        ctx.save_for_backward(grad_focal, grad_dice)
        return focal, dice

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, focal: Tensor, dice: Tensor) -> tuple[Tensor, None, None]:
        grad_focal, grad_dice = ctx.saved_tensors
        grad = focal[:, None, None] * grad_focal + dice[:, None, None] * grad_dice
        return grad, None, None


def _interpolation(source: int, size: int, like: Tensor) -> Tensor:
    """``size × source``: the matrix that resizes one axis linearly, as ``F.interpolate`` does.

    Bilinear resizing is a product with one such matrix a side, and its gradient with their
    transposes: on a CPU several times as fast as the interpolation's own backward pass.
    """
    basis = torch.eye(source, dtype=like.dtype, device=like.device)[None]
    return F.interpolate(basis, size, mode="linear", align_corners=False)[0].T


def _losses_and_gradients(
    logits: Tensor, masks: Tensor
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Focal and dice of M×P logits and bool masks, and their derivatives by the logits.

    With ``s = x`` outside the mask and ``-x`` inside, the probability of the wrong answer is
    ``q = σ(s)`` and the cross-entropy ``softplus(s)``: both sides of a mask are one formula.
    """
    pixels = logits.shape[1]
    truth = masks.to(logits.dtype)
    sign = 1 - 2 * truth
    wrong_logits = sign * logits
    wrong = wrong_logits.sigmoid()
    entropy = F.softplus(wrong_logits)
    weighted = (wrong * wrong).mul_((1 - _ALPHA) + (2 * _ALPHA - 1) * truth)
    focal = (weighted * entropy).sum(1) / pixels
    # d/ds [w q² softplus(s)] = w q² (2 (1 - q) softplus(s) + q)
    slope = (1 - wrong).mul_(entropy).mul_(2).add_(wrong)
    focal_grad = slope.mul_(weighted).mul_(sign).div_(pixels)

    probability = sign * wrong + truth  # 1 - q inside, q outside
    area = probability.sum(1) + truth.sum(1) + 1
    score = (2 * (probability * truth).sum(1) + 1) / area
    # d(dice)/dp = (score - 2t) / area, and dp/dx = q (1 - q)
    dice_grad = (score[:, None] - 2 * truth).div_(area[:, None])
    dice_grad.mul_(wrong).mul_(1 - wrong)
    return (focal, 1 - score), (focal_grad, dice_grad)


def pairwise_focal_cost(
    logits: Tensor, targets: Tensor, alpha: float = _ALPHA, gamma: float = _GAMMA
) -> Tensor:
    """The focal loss of every prediction with every target.

    A pixel costs ``f₁(x)`` inside a mask and ``f₀(x)`` outside, so the sum over pixels is
    ``Σ f₀ + (f₁ - f₀)·t``: one matrix product instead of two.

    Args:
        logits: R×P, mask logits at P pixels.
        targets: N×P, float, 0 or 1.

    Returns:
        R×N, each ≥ 0.
    """
    logits = logits.float()
    probability = logits.sigmoid()
    inside = alpha * (1 - probability).pow(gamma) * F.softplus(-logits)
    outside = (1 - alpha) * probability.pow(gamma) * F.softplus(logits)
    cost = outside.sum(1, keepdim=True) + (inside - outside) @ targets.T
    return cost / logits.shape[1]


def pairwise_dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """The dice loss of every prediction with every target.

    Args:
        logits: R×P, mask logits at P pixels.
        targets: N×P, float, 0 or 1.

    Returns:
        R×N, each in [0, 1).
    """
    probability = logits.float().sigmoid()
    overlap = probability @ targets.T
    return 1 - (2 * overlap + 1) / (probability.sum(1, keepdim=True) + targets.sum(1)[None] + 1)
