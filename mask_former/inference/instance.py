"""The instance result: the best (query, class) pairs."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from mask_former.ops import as_masks
from mask_former.structures import Size

from .masks import Masks, without_autocast

__all__ = ["instance_inference"]


@without_autocast
@torch.no_grad()
def instance_inference(
    mask_cls: Tensor,
    mask_pred: Masks,
    *,
    topk: int,
    thing_ids: Iterable[int] | None = None,
    size: Size | None = None,
) -> Instances:
    """Find the best (query, class) pairs; a query may appear with several classes.

    The score of a pair is its class probability × the mean mask probability inside the mask
    (σ > 0.5). The ``topk`` pairs by class probability are chosen first; of these, pairs with a
    thing class are kept.

    Args:
        mask_cls: Q×(K+1).
        mask_pred: Q×h×w.
        topk: number of pairs to choose, over all classes.
        thing_ids: class ids to keep; None keeps all.
        size: (H, W) to which the masks are resized; None keeps their size.

    Returns:
        ``Instances`` of size H×W with ``pred_masks`` (bool, n×H×W), ``pred_boxes`` (the masks'
        bounding boxes, XYXY, right and bottom exclusive; 0 if empty), ``scores`` and
        ``pred_classes``.
    """
    probability = mask_cls.float().softmax(-1)[:, :-1]
    classes = probability.shape[1]
    scores, pairs = probability.flatten().topk(min(topk, probability.numel()), sorted=False)
    queries, labels = pairs // classes, pairs % classes
    if thing_ids is not None:
        kept = torch.isin(labels, torch.tensor(sorted(set(thing_ids)), device=labels.device))
        scores, queries, labels = scores[kept], queries[kept], labels[kept]

    used, pair = queries.unique(return_inverse=True)
    masks = as_masks(mask_pred).resize(size)[used]
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
    """Compute the boxes of n×H×W bool masks: n×4 XYXY, fp32, right and bottom exclusive."""
    edges = []
    for axis in (1, 2):  # project onto the columns, then onto the rows
        covered = masks.view(torch.uint8).amax(axis)
        first = covered.argmax(1)
        last = covered.shape[1] - covered.flip(1).argmax(1)
        # 0 if the mask is empty
        edges.append(torch.stack([first, last], 1) * covered.amax(1, keepdim=True))
    columns, rows = edges
    return torch.stack([columns[:, 0], rows[:, 0], columns[:, 1], rows[:, 1]], 1).float()
