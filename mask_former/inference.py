"""From a set of masks to results (paper, sections 3.3 and 3.4): pure functions on tensors.

Everywhere ``mask_cls`` is Q×(K+1), class logits whose last column is "no object", and ``mask_pred``
is Q×h×w, mask logits, both of any floating type: a tensor, or :class:`LazyMasks`, for those that
are resized in several steps. Where a ``size`` (H, W) is given, the masks are first enlarged to it
(bilinear); otherwise H×W is h×w. Class ids are contiguous.

No function holds Q×H×W: it enlarges a band of rows that fits a CPU's cache, is done with it, and
goes on to the next. All is fp32, also inside a caller's autocast.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .layers import LazyMasks, largest
from .structures import SegmentInfo

__all__ = [
    "instance_inference",
    "panoptic_inference",
    "resize_masks",
    "semantic_inference",
    "semantic_map",
]

Size = tuple[int, int]
Masks = Tensor | LazyMasks
P = ParamSpec("P")
R = TypeVar("R")

_SPARE = 0.01
"""What the queries that :func:`semantic_map` leaves out at first may together add to a class."""

_ROUNDING = 1e-5
"""More than the sum over queries errs in fp32."""


def _without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a caller's ``torch.autocast`` out of matrix products."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        mask_cls = args[0] if args else kwargs["mask_cls"]
        assert isinstance(mask_cls, Tensor)
        with torch.autocast(mask_cls.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def resize_masks(masks: Tensor, size: Size | None) -> Tensor:
    """Q×h×w brought to Q×H×W (bilinear); as they are where ``size`` is None or theirs."""
    if size is None or tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if not len(masks):  # torch does not enlarge nothing
        return masks.new_zeros((0, *size))
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


@_without_autocast
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
    probability = _class_probability(mask_cls)
    gradient = torch.is_grad_enabled() and (mask_cls.requires_grad or mask_pred.requires_grad)
    if gradient or torch.compiler.is_compiling():
        return torch.einsum("kq,qhw->khw", probability, masks.tensor())
    low_precision = mask_pred.dtype == torch.bfloat16 and mask_cls.device.type == "cpu"
    probability = probability.to(torch.bfloat16 if low_precision else torch.float32)
    result = mask_cls.new_empty((len(probability), *masks.size), dtype=torch.float32)
    for rows, band in masks.bands(channels=len(probability)):
        result[:, rows] = (probability @ band.to(probability.dtype)).transpose(0, 1)
    return result


@_without_autocast
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
    probability = _class_probability(mask_cls)
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


def _class_probability(mask_cls: Tensor) -> Tensor:
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


@_without_autocast
@torch.no_grad()
def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Masks,
    *,
    thing_ids: Iterable[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    label_ids_to_fuse: Iterable[int] | None = None,
    size: Size | None = None,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Give each pixel to one query (paper, section 3.4).

    Queries stay whose best class is real and more probable than ``object_mask_threshold``. Each
    pixel goes to the one with the largest class probability × mask probability. A query that
    wins fewer pixels than ``overlap_threshold`` of its own mask (σ ≥ 0.5), or has none, is
    dropped, and what it won is void.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        thing_ids: class ids of things; every other class is stuff.
        object_mask_threshold: in [0, 1].
        overlap_threshold: in [0, 1].
        label_ids_to_fuse: the classes whose segments become one; by default the stuff.
        size: (H, W).

    Returns:
        The ids H×W, int32, 0 being void, and the segments in the order of their ids, from 1.
    """
    things = set(thing_ids)
    stuff = set(range(mask_cls.shape[-1] - 1)) - things
    fuse = stuff if label_ids_to_fuse is None else set(label_ids_to_fuse)
    scores, labels = mask_cls.float().softmax(-1).max(-1)
    keep = (labels != mask_cls.shape[-1] - 1) & (scores > object_mask_threshold)
    scores, labels = scores[keep], labels[keep]

    masks = LazyMasks.of(mask_pred).resize(size)
    winner = torch.zeros(masks.size, dtype=torch.int64, device=mask_cls.device)
    if not len(scores):
        return winner.int(), []
    own = torch.zeros(len(scores), dtype=torch.int64, device=mask_cls.device)
    for rows, band in masks[keep].bands():
        band = band.sigmoid()
        own += (band >= 0.5).sum((0, 2))
        winner[rows] = largest(band.mul_(scores[:, None]))[0]
    won = torch.bincount(winner.flatten(), minlength=len(scores))
    solid = (won > 0) & (own > 0) & (won / own >= overlap_threshold)
    found = zip(labels[solid].tolist(), scores[solid].tolist(), strict=True)
    segments, ids = _segments(found, things, fuse)
    id_of_query = torch.zeros(len(scores), dtype=torch.int32)
    id_of_query[solid.cpu()] = torch.tensor(ids, dtype=torch.int32)
    return id_of_query.to(winner.device)[winner], segments


def _segments(
    found: Iterable[tuple[int, float]], things: set[int], fuse: set[int]
) -> tuple[list[SegmentInfo], list[int]]:
    """The segments of what was found, (class, score) by query, and the id that each query has."""
    segments: list[SegmentInfo] = []
    fused: dict[int, SegmentInfo] = {}
    ids = []
    for label, score in found:
        if label in fused:
            fused[label]["score"] = max(fused[label]["score"], score)
        else:
            segment = SegmentInfo(
                id=len(segments) + 1, isthing=label in things, category_id=label, score=score
            )
            segments.append(segment)
            if label in fuse:
                fused[label] = segment
        ids.append(fused.get(label, segments[-1])["id"])
    return segments, ids


@_without_autocast
@torch.no_grad()
def instance_inference(
    mask_cls: Tensor,
    mask_pred: Masks,
    *,
    topk: int,
    thing_ids: Iterable[int] | None = None,
    size: Size | None = None,
) -> Instances:
    """The best (query, class) pairs; a query may answer for several classes.

    A pair scores its class probability × the mean mask probability inside the mask (σ > 0.5).
    The ``topk`` pairs by class probability are taken first, then those of things are kept.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        topk: pairs to take, over all classes.
        thing_ids: class ids to keep; all where None.
        size: (H, W).

    Returns:
        ``Instances`` of size H×W with ``pred_masks`` (bool, n×H×W), ``pred_boxes`` (the masks'
        bounding boxes, XYXY, right and bottom exclusive), ``scores`` and ``pred_classes``.
    """
    probability = mask_cls.float().softmax(-1)[:, :-1]
    classes = probability.shape[1]
    scores, pairs = probability.flatten().topk(min(topk, probability.numel()), sorted=False)
    queries, labels = pairs // classes, pairs % classes
    if thing_ids is not None:
        kept = torch.isin(labels, torch.tensor(sorted(set(thing_ids)), device=labels.device))
        scores, queries, labels = scores[kept], queries[kept], labels[kept]

    used, pair = queries.unique(return_inverse=True)
    masks = LazyMasks.of(mask_pred).resize(size)[used]
    result = Instances(masks.size)
    result.pred_masks = mask_cls.new_empty((len(pair), *masks.size), dtype=torch.bool)
    area, inside = torch.zeros(2, len(used), device=mask_cls.device)
    for rows, band in masks.bands():
        positive = band > 0
        area += positive.sum((0, 2))
        inside += (band.sigmoid() * positive).sum((0, 2))
        result.pred_masks[:, rows] = positive.transpose(0, 1)[pair]
    result.pred_boxes = Boxes(_bounding_boxes(result.pred_masks))
    result.scores = scores * (inside / area.clamp(min=1))[pair]
    result.pred_classes = labels
    return result


def _bounding_boxes(masks: Tensor) -> Tensor:
    """XYXY of n×H×W bool, right and bottom exclusive, fp32: n×4; zeros for an empty mask."""
    edges = []
    for axis in (1, 2):  # what is left are columns, then rows
        covered = masks.view(torch.uint8).amax(axis)
        first = covered.argmax(1)
        last = covered.shape[1] - covered.flip(1).argmax(1)
        edges.append(torch.stack([first, last], 1) * covered.amax(1, keepdim=True))
    columns, rows = edges
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], 1).float()
