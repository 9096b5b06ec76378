"""The semantic result: per-class scores of each pixel, and the best class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mask_former.ops import LazyMasks, WholeMasks, argmax_with_margin, as_masks
from mask_former.structures import Size

from .masks import Masks, without_autocast

__all__ = [
    "best_classes",
    "class_probability",
    "semantic_inference",
    "semantic_map",
    "semantic_map_with_scores",
]

_SPARE = 0.01
"""Maximum score that the queries left out of the first pass of :func:`semantic_map` may add to a
class, all together."""

_ROUNDING = 1e-5
"""Upper bound of the rounding error of a sum over queries in fp32."""


@without_autocast
def semantic_inference(
    mask_cls: Tensor,
    mask_pred: Masks,
    size: Size | None = None,
    *,
    result_size: Size | None = None,
) -> Tensor:
    """Compute ``Σ_q p_q(c) · σ(mask_q)``, the score of each class at each pixel.

    Differentiable, but a Q×H×W tensor is held if a gradient is required. On a CPU, bfloat16 masks
    are multiplied in bfloat16, so that the scores have only two to three correct digits.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        size: (H, W) to which the masks are resized; None keeps their size.
        result_size: (H, W) to which the result is resized (bilinear); None keeps its size.

    Returns:
        K×H×W, fp32, values ≥ 0 that need not sum to 1.
    """
    # Resizing and the sum over queries commute; with K > Q it is cheaper to resize the Q masks.
    masks = as_masks(mask_pred).resize(size).sigmoid().resize(result_size)
    probability = class_probability(mask_cls)
    gradient = torch.is_grad_enabled() and (mask_cls.requires_grad or mask_pred.requires_grad)
    if gradient or torch.compiler.is_compiling() or isinstance(masks, WholeMasks):
        return torch.einsum("kq,qhw->khw", probability, masks.tensor())
    low_precision = mask_pred.dtype == torch.bfloat16 and mask_cls.device.type == "cpu"
    probability = probability.to(torch.bfloat16 if low_precision else torch.float32)
    result = mask_cls.new_empty((len(probability), *masks.size), dtype=torch.float32)
    for rows, band in masks.bands(channels=len(probability)):
        result[:, rows] = (probability @ band.to(probability.dtype)).transpose(0, 1)
    return result


# Example: classes A and B, queries with p = A .9, B .9, B .004, B .003. The last two add at most
# .004 + .003 = .007 to a class, less than _SPARE: the first pass sums the first two queries.
#     A pixel with mask probabilities .50 and .49: A .450 leads B .441 by .009 > .007, settled.
#     A pixel with .500 and .495: A .450 leads B .4455 by .0045: the second pass sums all four
#     queries there, and B may win. On CamVid these are 0.3 % of the pixels.


@without_autocast
@torch.no_grad()
def semantic_map(mask_cls: Tensor, mask_pred: Masks, size: Size | None = None) -> Tensor:
    """Find the best class of each pixel without holding K×H×W.

    In a trained model, most queries predict "no object". The first pass sums the other queries and
    settles the pixels whose best class leads by more than the queries left out could add to another
    class; the second pass sums all queries at the remaining pixels.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        size: (H, W) to which the masks are resized; None keeps their size.

    Returns:
        H×W, int64, class ids: the first of the largest values of :func:`semantic_inference`.
    """
    masks = as_masks(mask_pred).resize(size)
    probability = class_probability(mask_cls)
    if torch.compiler.is_compiling() or isinstance(masks, WholeMasks):
        return torch.einsum("kq,qhw->khw", probability, masks.sigmoid().tensor()).argmax(0)
    chosen, spare = _queries_that_matter(probability)
    some = probability[:, chosen]
    result = torch.empty(masks.size, dtype=torch.int64, device=mask_cls.device)
    for rows, band in masks[chosen].bands(channels=len(probability)):
        winner, settled = argmax_with_margin(some @ band.sigmoid(), spare)
        result[rows] = winner
        if spare:
            _settle(result, rows, settled, probability, masks)
    return result


@without_autocast
@torch.no_grad()
def semantic_map_with_scores(
    mask_cls: Tensor,
    mask_pred: Masks,
    size: Size | None = None,
    *,
    result_size: Size | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the best class of each pixel and its share of the scores without holding K×H×W.

    All queries are summed at every pixel, so it is slower than :func:`semantic_map`.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        size: (H, W) to which the masks are resized; None keeps their size.
        result_size: (H, W) to which the scores are resized (bilinear) before classes are compared;
            None keeps their size.

    Returns:
        H×W, int64, class ids as :func:`semantic_map` returns them, and H×W, fp32, in [0, 1]: the
        best class's share of the sum of all classes' scores; 0 if all scores are 0, nan if one is
        nan.
    """
    masks = as_masks(mask_pred).resize(size).sigmoid().resize(result_size)
    probability = class_probability(mask_cls)
    bands = masks.bands(channels=len(probability))
    scores = ((rows, probability @ band) for rows, band in bands)
    return best_classes(scores, masks.size, mask_cls.device)


def best_classes(
    scores: Iterable[tuple[slice, Tensor]], size: Size, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Find best classes and shares from bands of scores; see :func:`semantic_map_with_scores`.

    Args:
        scores: bands: the slice of the rows, and their scores ≥ 0, R×K×W, which are overwritten.
        size: (H, W).
        device: device of the scores.
    """
    ids = torch.empty(size, dtype=torch.int64, device=device)
    shares = torch.empty(size, device=device)
    for rows, band in scores:
        total = band.sum(1).clamp_(min=torch.finfo(band.dtype).tiny)  # all scores may be 0
        shares[rows] = band.amax(1).div_(total)
        ids[rows] = argmax_with_margin(band)[0]
    return ids, shares


def _settle(
    result: Tensor, rows: slice, settled: Tensor, probability: Tensor, masks: LazyMasks
) -> None:
    """Sum all queries at the pixels of a band that are not settled, and write their best class."""
    y, x = settled.logical_not().nonzero(as_tuple=True)
    if len(y) * 8 > settled.numel():  # per pixel, computing whole rows is cheaper
        scores = probability @ masks.rows(rows.start, rows.stop).sigmoid()
        result[rows] = argmax_with_margin(scores)[0]
    elif len(y):
        y = y + rows.start
        result[y, x] = (masks.at(y, x).sigmoid() @ probability.T).argmax(1)


def class_probability(mask_cls: Tensor) -> Tensor:
    """Compute the class probabilities without "no object": K×Q, fp32."""
    return mask_cls.float().softmax(-1)[:, :-1].T


def _queries_that_matter(probability: Tensor) -> tuple[Tensor, float]:
    """Choose the queries to sum first, and bound what the others can add to a class.

    Args:
        probability: K×Q.

    Returns:
        Indices of queries, and the bound; 0 if all queries are chosen.
    """
    order = probability.amax(0).argsort(descending=True)
    # others[i], of Q: the most that the queries order[i:] together may add to any class
    others = probability[:, order].flip(1).cumsum(1).flip(1).amax(0)
    count = int((~(others <= _SPARE)).sum())  # nan: all
    if 4 * count >= 3 * len(order):  # too little to gain
        return order, 0.0
    return order[:count], float(others[count]) + _ROUNDING
