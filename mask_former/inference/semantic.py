"""The semantic result: how much speaks for each class at each pixel, and the best class."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mask_former.ops import LazyMasks, largest
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
"""What the queries that :func:`semantic_map` leaves out at first may together add to a class."""

_ROUNDING = 1e-5
"""More than the sum over queries errs in fp32."""


@without_autocast
def semantic_inference(
    mask_cls: Tensor,
    mask_pred: Masks,
    size: Size | None = None,
    *,
    result_size: Size | None = None,
) -> Tensor:
    """``Σ_q p_q(c) · σ(mask_q)``: how much speaks for each class at each pixel.

    Differentiable; where a gradient is asked for, Q×H×W is held after all. On a CPU, bfloat16
    masks are multiplied in bfloat16 too, and the result has its two to three digits.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        size: (H, W).
        result_size: (H, W) to which the result is resized (bilinear); its own by default.

    Returns:
        K×H×W, fp32, values ≥ 0 that need not sum to 1.
    """
    # The sum over queries and resizing may change places: with K > Q it is Q that costs less.
    masks = LazyMasks.of(mask_pred).resize(size).sigmoid().resize(result_size)
    probability = class_probability(mask_cls)
    gradient = torch.is_grad_enabled() and (mask_cls.requires_grad or mask_pred.requires_grad)
    if gradient or torch.compiler.is_compiling():
        return torch.einsum("kq,qhw->khw", probability, masks.tensor())
    low_precision = mask_pred.dtype == torch.bfloat16 and mask_cls.device.type == "cpu"
    probability = probability.to(torch.bfloat16 if low_precision else torch.float32)
    result = mask_cls.new_empty((len(probability), *masks.size), dtype=torch.float32)
    for rows, band in masks.bands(channels=len(probability)):
        result[:, rows] = (probability @ band.to(probability.dtype)).transpose(0, 1)
    return result


@without_autocast
@torch.no_grad()
def semantic_map(mask_cls: Tensor, mask_pred: Masks, size: Size | None = None) -> Tensor:
    """The best class of each pixel; K×H×W is never held.

    In a trained model most queries say "no object". The others are summed first. Where the lead
    of a pixel's best class is larger than what the rest could add to another, it is settled; the
    other pixels are done again with all queries.

    Returns:
        H×W, int64, class ids: the first of the largest values of :func:`semantic_inference`.
    """
    masks = LazyMasks.of(mask_pred).resize(size)
    probability = class_probability(mask_cls)
    if torch.compiler.is_compiling():
        return torch.einsum("kq,qhw->khw", probability, masks.tensor().sigmoid()).argmax(0)
    chosen, spare = _queries_that_matter(probability)
    some = probability[:, chosen]
    result = torch.empty(masks.size, dtype=torch.int64, device=mask_cls.device)
    for rows, band in masks[chosen].bands(channels=len(probability)):
        winner, settled = largest(some @ band.sigmoid(), spare)
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
    """The best class of each pixel, and how sure it is; K×H×W is never held.

    It takes all queries everywhere, and so is slower than :func:`semantic_map`.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        size: (H, W).
        result_size: (H, W) to which the scores are resized (bilinear) before classes are compared;
            their own by default.

    Returns:
        H×W, int64, class ids as :func:`semantic_map` gives them, and H×W, fp32, in [0, 1]: the
        best class's share of the sum of all classes' scores; 0 where no class has any, nan where
        one is nan.
    """
    masks = LazyMasks.of(mask_pred).resize(size).sigmoid().resize(result_size)
    probability = class_probability(mask_cls)
    bands = masks.bands(channels=len(probability))
    scores = ((rows, probability @ band) for rows, band in bands)
    return best_classes(scores, masks.size, mask_cls.device)


def best_classes(
    scores: Iterable[tuple[slice, Tensor]], size: Size, device: torch.device
) -> tuple[Tensor, Tensor]:
    """As :func:`semantic_map_with_scores`, from scores that come in bands.

    Args:
        scores: (which rows, R×K×W), not negative; overwritten.
        size: (H, W).
        device: of the scores.
    """
    ids = torch.empty(size, dtype=torch.int64, device=device)
    shares = torch.empty(size, device=device)
    for rows, band in scores:
        total = band.sum(1).clamp_(min=torch.finfo(band.dtype).tiny)  # masks may all be 0
        shares[rows] = band.amax(1).div_(total)
        ids[rows] = largest(band)[0]
    return ids, shares


def _settle(
    result: Tensor, rows: slice, settled: Tensor, probability: Tensor, masks: LazyMasks
) -> None:
    """Write the best class, by all queries, to the pixels of a band that are not settled."""
    y, x = settled.logical_not().nonzero(as_tuple=True)
    if len(y) * 8 > settled.numel():  # single pixels cost more than pixels in a row
        scores = probability @ masks.rows(rows.start, rows.stop).sigmoid()
        result[rows] = largest(scores)[0]
    elif len(y):
        y = y + rows.start
        result[y, x] = (masks.at(y, x).sigmoid() @ probability.T).argmax(1)


def class_probability(mask_cls: Tensor) -> Tensor:
    """K×Q, fp32: the probabilities of real classes."""
    return mask_cls.float().softmax(-1)[:, :-1].T


def _queries_that_matter(probability: Tensor) -> tuple[Tensor, float]:
    """Which queries to sum (indices), and the most that the rest can add to a class.

    Args:
        probability: K×Q.
    """
    order = probability.amax(0).argsort(descending=True)
    # K×Q: what the queries from each place of the order on may add to each class
    rest = probability[:, order].flip(1).cumsum(1).flip(1).amax(0)
    count = int((~(rest <= _SPARE)).sum())  # with nan, all
    if 4 * count >= 3 * len(order):  # too little to gain
        return order, 0.0
    return order[:count], float(rest[count]) + _ROUNDING
