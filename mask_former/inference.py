"""From a set of masks to results (paper, sections 3.3 and 3.4): pure functions on tensors.

Everywhere ``mask_cls`` is Q×(K+1), class logits whose last column is "no object", and ``mask_pred``
is Q×h×w, mask logits. Where a ``size`` (H, W) is given, the masks are first enlarged to it
(bilinear); otherwise H×W is h×w. Class ids are contiguous.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from .structures import SegmentInfo

__all__ = [
    "instance_inference",
    "panoptic_inference",
    "resize_masks",
    "semantic_inference",
    "semantic_map",
]

Size = tuple[int, int]

_BAND_PIXELS = 1 << 16
"""Pixels that :func:`semantic_map` works on at a time: K of them must fit a CPU's cache."""


def resize_masks(masks: Tensor, size: Size | None) -> Tensor:
    """Q×h×w brought to Q×H×W (bilinear); as they are where ``size`` is None or theirs."""
    if size is None or tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if not len(masks):  # torch does not enlarge nothing
        return masks.new_zeros((0, *size))
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]


def semantic_inference(mask_cls: Tensor, mask_pred: Tensor, size: Size | None = None) -> Tensor:
    """``Σ_q p_q(c) · σ(mask_q)``: how much speaks for each class at each pixel.

    Returns:
        K×H×W, values ≥ 0 that need not sum to 1.
    """
    probability = mask_cls.softmax(-1)[:, :-1]
    masks = resize_masks(mask_pred, size).sigmoid()
    return torch.einsum("qc,qhw->chw", probability, masks)


def semantic_map(mask_cls: Tensor, mask_pred: Tensor, size: Size | None = None) -> Tensor:
    """The best class of each pixel, band by band: K×H×W is never held.

    Returns:
        H×W, int64, class ids.
    """
    probability = mask_cls.softmax(-1)[:, :-1].T
    masks = resize_masks(mask_pred, size).flatten(1)
    bands = masks.split(_BAND_PIXELS, dim=1)
    best = torch.cat([(probability @ band.sigmoid()).argmax(0) for band in bands])
    return best.view(size or mask_pred.shape[-2:])


def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
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
    if not len(scores):
        shape = size or mask_pred.shape[-2:]
        return torch.zeros(tuple(shape), dtype=torch.int32, device=mask_pred.device), []

    masks = resize_masks(mask_pred[keep], size).float().sigmoid()
    own = (masks >= 0.5).flatten(1).sum(1)
    winner = masks.mul_(scores[:, None, None]).argmax(0)
    won = torch.bincount(winner.flatten(), minlength=len(scores))
    solid = (won > 0) & (own > 0) & (won / own >= overlap_threshold)

    segments: list[SegmentInfo] = []
    fused: dict[int, SegmentInfo] = {}
    segment_of_query = torch.zeros(len(scores), dtype=torch.int32)
    for query in solid.nonzero().flatten().tolist():
        label, score = int(labels[query]), float(scores[query])
        if label in fused:
            fused[label]["score"] = max(fused[label]["score"], score)
        else:
            segment = SegmentInfo(
                id=len(segments) + 1, isthing=label in things, category_id=label, score=score
            )
            segments.append(segment)
            if label in fuse:
                fused[label] = segment
        segment_of_query[query] = fused.get(label, segments[-1])["id"]
    return segment_of_query.to(winner.device)[winner], segments


def instance_inference(
    mask_cls: Tensor,
    mask_pred: Tensor,
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

    used, row = queries.unique(return_inverse=True)
    logits = resize_masks(mask_pred[used], size).float()
    masks = logits > 0
    inside = (logits.sigmoid() * masks).flatten(1).sum(1) / masks.flatten(1).sum(1).clamp(min=1)
    result = Instances(tuple(logits.shape[-2:]))
    result.pred_masks = masks[row]
    boxes = BitMasks(masks).get_bounding_boxes().to(row.device)
    result.pred_boxes = Boxes(boxes.tensor[row])
    result.scores = scores * inside[row]
    result.pred_classes = labels
    return result
