"""Focal and dice between masks: of matched pairs (losses) and of all pairs (matching costs).

The focal loss is that of RetinaNet (arXiv 1708.02002), the dice loss that of V-Net
(arXiv 1606.04797) with 1 added above and below the line, as in DETR. Everything is fp32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "dice_loss",
    "dice_of_sums",
    "leave_out",
    "pairwise_dice_cost",
    "pairwise_focal_cost",
    "pairwise_mask_costs",
    "sigmoid_focal_loss",
    "softplus",
    "tile_elements",
    "to_float",
]

ALPHA = 0.25
GAMMA = 2.0
_SURELY_OUTSIDE = -1e4
"""A logit whose sigmoid, and so every term of it outside a mask, is exactly 0 in fp32."""


def tile_elements(device: torch.device) -> int:
    """How many elements of a large tensor are worked on at a time.

    On a CPU each thread's share of a few such tiles fits its cache; on a GPU they are large enough
    to fill it, and small beside its memory.
    """
    return torch.get_num_threads() << 17 if device.type == "cpu" else 1 << 22


def to_float(masks: Tensor) -> Tensor:
    """Bool masks as fp32; several times as fast on a CPU as ``masks.float()``."""
    return masks.view(torch.uint8).float()


def leave_out(logits: Tensor, valid: Tensor) -> Tensor:
    """Mask logits that add nothing to any sum where ``valid`` (bool, broadcast) is False.

    They say "surely outside" there: with a target that is 0 there too, focal and dice terms and
    their gradients are exactly 0.
    """
    return logits.masked_fill(~valid, _SURELY_OUTSIDE)


def softplus(logits: Tensor, other: Tensor) -> Tensor:
    """``log(1 + exp x)``, given ``other = σ(-x)``, within 1e-6 of ``F.softplus`` in fp32.

    It is ``-log σ(-x)``, and ``x`` itself where σ(-x) underflows: 5 times as fast on a CPU, where
    torch has vector code for ``log`` and none for ``log1p``.
    """
    tiny = torch.finfo(other.dtype).tiny
    return torch.maximum(other.clamp(min=tiny).log_().neg_(), logits)


def sigmoid_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float = ALPHA, gamma: float = GAMMA
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
    return dice_of_sums(overlap, probability.sum(1), targets.sum(1))


def dice_of_sums(overlap: Tensor, predicted: Tensor, true: Tensor) -> Tensor:
    """``1 - (2 Σpt + 1) / (Σp + Σt + 1)``, given Σpt, Σp and Σt."""
    return 1 - (2 * overlap + 1) / (predicted + true + 1)


def _focal_terms(
    logits: Tensor, probability: Tensor, alpha: float, gamma: float
) -> tuple[Tensor, Tensor]:
    """What a pixel costs outside a mask, and what it costs more inside."""
    other = logits.neg().sigmoid_()  # 1 - p, exact where p is nearly 1
    entropy = softplus(logits, other)
    outside = probability.pow(gamma).mul_(entropy).mul_(1 - alpha)
    inside = entropy.sub_(logits).mul_(other.pow_(gamma)).mul_(alpha)
    return outside, inside.sub_(outside)


def pairwise_focal_cost(
    logits: Tensor, targets: Tensor, alpha: float = ALPHA, gamma: float = GAMMA
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
    outside, more = _focal_terms(logits, logits.sigmoid(), alpha, gamma)
    return (outside.sum(1, keepdim=True) + more @ targets.T) / logits.shape[1]


def pairwise_dice_cost(logits: Tensor, targets: Tensor) -> Tensor:
    """The dice loss of every prediction with every target.

    Args:
        logits: R×P, mask logits at P pixels.
        targets: N×P, float, 0 or 1.

    Returns:
        R×N, each in [0, 1).
    """
    probability = logits.float().sigmoid()
    return dice_of_sums(probability @ targets.T, probability.sum(1, keepdim=True), targets.sum(1))


def pairwise_mask_costs(
    logits: Sequence[Tensor], masks: Tensor, valid: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`pairwise_focal_cost` and :func:`pairwise_dice_cost` at once, tile by tile.

    Both come from one matrix product a tile of pixels, and nothing else of R×P or of N×P in fp32
    is ever held.

    Args:
        logits: mask logits at P pixels, in parts R₁×P, R₂×P, … of any float type.
        masks: N×P, bool.
        valid: P, bool; pixels where it is False do not count. None: all count.

    Returns:
        Two R×N tensors, fp32, R = R₁ + R₂ + …
    """
    rows = sum(len(part) for part in logits)
    pixels = masks.shape[1]
    product = torch.zeros(2 * rows, len(masks), device=masks.device)
    outside, predicted = torch.zeros(2, rows, 1, device=masks.device)
    true = torch.zeros(len(masks), device=masks.device)
    step = max(1, tile_elements(masks.device) // max(1, rows))
    for start in range(0, pixels, step):
        tile = slice(start, start + step)
        x = torch.cat([part[:, tile] for part in logits]).float()
        t = masks[:, tile]
        if valid is not None:
            x, t = leave_out(x, valid[tile]), t & valid[tile]
        t = to_float(t)
        probability = x.sigmoid()
        cost, more = _focal_terms(x, probability, ALPHA, GAMMA)
        product.addmm_(torch.cat([more, probability]), t.T)
        outside += cost.sum(1, keepdim=True)
        predicted += probability.sum(1, keepdim=True)
        true += t.sum(1)
    counted = pixels if valid is None else valid.sum().clamp(min=1)
    more, overlap = product.view(2, rows, len(masks))
    return (outside + more) / counted, dice_of_sums(overlap, predicted, true)
