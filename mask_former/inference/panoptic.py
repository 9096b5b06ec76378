"""The panoptic result: each pixel is assigned to one query (paper, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from mask_former.ops import argmax_with_margin, as_masks
from mask_former.structures import SegmentInfo, Size

from .masks import Masks, without_autocast

__all__ = ["panoptic_inference"]


@without_autocast
@torch.no_grad()
def panoptic_inference(
    mask_cls: Tensor,
    mask_pred: Masks,
    *,
    thing_ids: Iterable[int],
    object_mask_threshold: float,
    overlap_threshold: float,
    label_ids_to_fuse: Iterable[int] | None = None,
    segment_within_mask: bool = False,
    size: Size | None = None,
) -> tuple[Tensor, list[SegmentInfo]]:
    """Assign each pixel to one query (paper, section 3.4).

    A query is kept if its best class is not "no object" and more probable than
    ``object_mask_threshold``. Each pixel is assigned to the query with the largest class
    probability × mask probability. A query is dropped, and its pixels become void, if its mask
    (σ ≥ 0.5) is empty, or if it wins no pixels or fewer than ``overlap_threshold`` times the mask's
    area.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        thing_ids: class ids of things; every other class is stuff.
        object_mask_threshold: in [0, 1].
        overlap_threshold: in [0, 1].
        label_ids_to_fuse: class ids whose segments are merged into one per class. Default: stuff.
        segment_within_mask: as in Mask2Former, leave pixels void that lie outside the mask
            (σ < 0.5) of the query that wins them, and drop a query if no pixels remain.
        size: (H, W) to which the masks are resized; None keeps their size.

    Returns:
        Segment ids H×W, int32, 0 for void, and the segments in the order of their ids, from 1.
    """
    things = set(thing_ids)
    stuff = set(range(mask_cls.shape[-1] - 1)) - things
    fuse = stuff if label_ids_to_fuse is None else set(label_ids_to_fuse)
    scores, labels = mask_cls.float().softmax(-1).max(-1)
    keep = (labels != mask_cls.shape[-1] - 1) & (scores > object_mask_threshold)
    scores, labels = scores[keep], labels[keep]

    masks = as_masks(mask_pred).resize(size)
    winner = torch.zeros(masks.size, dtype=torch.int64, device=mask_cls.device)
    within = torch.ones(masks.size, dtype=torch.bool, device=mask_cls.device)
    if not len(scores):
        return winner.int(), []
    area = torch.zeros(len(scores), dtype=torch.int64, device=mask_cls.device)
    for rows, band in masks[keep].bands():
        band = band.sigmoid()
        inside = band >= 0.5
        area += inside.sum((0, 2))
        winner[rows] = argmax_with_margin(band.mul_(scores[:, None]))[0]
        if segment_within_mask:
            within[rows] = inside.gather(1, winner[rows, None])[:, 0]
    won = torch.bincount(winner.flatten(), minlength=len(scores))
    kept = torch.bincount(winner[within], minlength=len(scores)) if segment_within_mask else won
    solid = (kept > 0) & (area > 0) & (won / area >= overlap_threshold)
    ids, segments = segment_ids(winner, scores, labels, solid, things=things, fuse=fuse)
    return (ids * within if segment_within_mask else ids), segments


def segment_ids(
    winner: Tensor,
    scores: Tensor,
    labels: Tensor,
    solid: Tensor,
    *,
    things: set[int],
    fuse: set[int],
) -> tuple[Tensor, list[SegmentInfo]]:
    """Turn the index of the winning query of each pixel into segment ids.

    Args:
        winner: H×W, int64, index of a query.
        scores, labels: Q values each, class probability and class id of each query.
        solid: Q, bool: True if the query becomes a segment; other queries' pixels become void.
        things, fuse: class ids of things, and of the classes whose segments are merged.

    Returns:
        Segment ids H×W, int32, and the segments: see :func:`panoptic_inference`.
    """
    found = zip(labels[solid].tolist(), scores[solid].tolist(), strict=True)
    segments, ids = _segments(found, things, fuse)
    id_of_query = torch.zeros(len(scores), dtype=torch.int32)
    id_of_query[solid.cpu()] = torch.tensor(ids, dtype=torch.int32)
    return id_of_query.to(winner.device)[winner], segments


def _segments(
    found: Iterable[tuple[int, float]], things: set[int], fuse: set[int]
) -> tuple[list[SegmentInfo], list[int]]:
    """Make segments of the kept queries, given as (class, score), and list their segment ids."""
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
