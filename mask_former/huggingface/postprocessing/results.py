"""Convert the logits of a batch to maps like those of ``MaskFormerImageProcessor``.

In every function ``outputs`` is a mapping with ``pred_logits`` B×Q×(K+1) and ``pred_masks``
B×Q×h×w, which this project's models return, or with ``class_queries_logits`` and
``masks_queries_logits``, which those of ``transformers`` return. To save memory, no function holds
maps of all queries at the size of the result, unless the masks are the result.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypedDict, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from mask_former.data.formats.rle import encode_mask
from mask_former.inference import instance_inference, semantic_inference, semantic_map
from mask_former.inference.panoptic import segment_ids
from mask_former.inference.semantic import best_classes
from mask_former.ops import argmax_with_margin, as_masks
from mask_former.structures import Size

from .images import ImagePrediction, Sizes, split_batch

__all__ = [
    "PostProcessed",
    "PostProcessedSegment",
    "post_process_instance",
    "post_process_panoptic",
    "post_process_semantic",
]

Form = Literal["id_map", "masks", "rle"]


class PostProcessedSegment(TypedDict):
    """A segment or an instance."""

    id: int
    """Value in the id map, or index of the mask."""
    label_id: int
    """Class id."""
    was_fused: bool
    """True if segments of its class are merged into one."""
    score: float
    """Score in [0, 1]; the largest one of merged segments."""


class PostProcessed(TypedDict):
    """The panoptic or instance result of one image."""

    segmentation: Any
    """Ids H×W, int32; or n masks: n×H×W, bool, or a list of COCO RLE dicts."""
    segments_info: list[PostProcessedSegment]
    """In the order of their ids."""


def post_process_semantic(
    outputs: Mapping[str, Any],
    target_sizes: Sizes | None = None,
    *,
    image_sizes: Sizes | None = None,
) -> list[Tensor]:
    """Find the best class of every pixel.

    Args:
        outputs: Outputs for a batch; see the module's docstring.
        target_sizes: Size (H, W) of each result; by default that of the mask logits, or of the
            image if ``image_sizes`` is given.
        image_sizes: Size (H, W) of each image within the padded input, in pixels of the network's
            input, which has 4×4 pixels for each mask logit. If given, mask logits are first
            upsampled to the padded input, cropped to the image and resized to the target size, as
            in ``MaskFormer``. Otherwise, as in ``transformers``, the padding is kept, and class
            scores, probabilities or masks are resized to the target size.

    Returns:
        Class ids, H×W, int64: one map for each image.

    Raises:
        KeyError: If ``outputs`` has neither pair of names.
        ValueError: If the number of sizes is not B, or an image is larger than the input.
    """
    return [_semantic(image) for image in split_batch(outputs, target_sizes, image_sizes)]


def _semantic(image: ImagePrediction) -> Tensor:
    mask_cls, masks, size = image
    if size is None:
        return semantic_map(mask_cls, masks)
    scores = as_masks(semantic_inference(mask_cls, masks)).resize(size)
    return best_classes(scores.bands(), size, mask_cls.device)[0]


def post_process_panoptic(
    outputs: Mapping[str, Any],
    threshold: float = 0.5,
    mask_threshold: float = 0.5,
    overlap_mask_area_threshold: float = 0.8,
    label_ids_to_fuse: Iterable[int] | None = None,
    target_sizes: Sizes | None = None,
    *,
    image_sizes: Sizes | None = None,
) -> list[PostProcessed]:
    """Assign each pixel to one segment.

    A query is kept if its best class is not "no object" and more probable than ``threshold``. Each
    pixel is assigned to the query with the largest class probability × mask probability. A query
    that wins no more than ``overlap_mask_area_threshold`` of its own mask (where that product is at
    least ``mask_threshold``) is dropped, and its pixels become void.

    Args:
        outputs, target_sizes, image_sizes: See :func:`post_process_semantic`.
        threshold, mask_threshold, overlap_mask_area_threshold: Values in [0, 1]; see above.
        label_ids_to_fuse: Ids of classes whose segments are merged into one; by default none.

    Returns:
        One result for each image: ids H×W, int32, from 1 on, with 0 for void; and the segments.

    Raises:
        KeyError, ValueError: See :func:`post_process_semantic`.
    """
    fuse = set(label_ids_to_fuse or ())
    return [
        _panoptic(image, threshold, mask_threshold, overlap_mask_area_threshold, fuse)
        for image in split_batch(outputs, target_sizes, image_sizes)
    ]


def _panoptic(
    image: ImagePrediction,
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    fuse: set[int],
) -> PostProcessed:
    mask_cls, masks, size = image
    scores, labels = mask_cls.softmax(-1).max(-1)
    keep = (labels != mask_cls.shape[-1] - 1) & (scores > threshold)
    scores, labels = scores[keep], labels[keep]
    probability = masks[keep].sigmoid().resize(size)
    winner = torch.zeros(probability.size, dtype=torch.int64, device=scores.device)
    if not len(scores):
        return PostProcessed(segmentation=winner.int(), segments_info=[])
    own = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    for rows, band in probability.bands():
        band = band * scores[:, None]
        own += (band >= mask_threshold).sum((0, 2))
        winner[rows] = argmax_with_margin(band)[0]
    won = torch.bincount(winner.flatten(), minlength=len(scores))
    share = (won / own).double()  # as in transformers: the fp32 quotient 4/5 exceeds 0.8
    solid = (won > 0) & (own > 0) & (share > overlap_threshold)
    ids, segments = segment_ids(winner, scores, labels, solid, things=set(), fuse=fuse)
    return PostProcessed(
        segmentation=ids,
        segments_info=[
            PostProcessedSegment(
                id=segment["id"],
                label_id=segment["category_id"],
                was_fused=segment["category_id"] in fuse,
                score=segment["score"],
            )
            for segment in segments
        ],
    )


def post_process_instance(
    outputs: Mapping[str, Any],
    threshold: float = 0.5,
    target_sizes: Sizes | None = None,
    *,
    form: Form = "id_map",
    image_sizes: Sizes | None = None,
) -> list[PostProcessed]:
    """Find the best Q of all (query, class) pairs, and keep those that score ``threshold`` or more.

    The score of a pair is its class probability × the mean mask probability inside the mask
    (σ > 0.5). Empty masks are left out. Without ``image_sizes``, binary masks at the size of the
    logits are resized by nearest neighbour, as in ``transformers``; with it, edges are smooth.

    Args:
        outputs, target_sizes, image_sizes: See :func:`post_process_semantic`.
        threshold: Smallest score of a kept pair, in [0, 1].
        form: Form of ``segmentation``. ``id_map``: H×W int32, ids from 0 on, -1 for pixels without
            an instance; where instances overlap, the last one. ``masks``: n×H×W bool. ``rle``: list
            of n COCO run-length encodings, ``{"size": [H, W], "counts": str}``, as in pycocotools.

    Returns:
        One result for each image.

    Raises:
        KeyError, ValueError: See :func:`post_process_semantic`, and for an unknown ``form``.
    """
    if form not in get_args(Form):
        raise ValueError(f"form is {form!r}; expected one of {', '.join(get_args(Form))}.")
    return [
        _instances(image, threshold, form)
        for image in split_batch(outputs, target_sizes, image_sizes)
    ]


def _instances(image: ImagePrediction, threshold: float, form: Form) -> PostProcessed:
    mask_cls, logits, size = image
    topk = len(mask_cls)
    if size is None:  # the masks are large: compute only those that can reach the threshold
        candidates = mask_cls.softmax(-1)[:, :-1] >= threshold
        topk = min(topk, int(candidates.sum()))
    found = instance_inference(mask_cls, logits, topk=topk)
    found = found[found.scores >= threshold]
    masks = _resize_nearest(found.pred_masks, size or logits.size)
    solid = masks.flatten(1).any(1)
    masks, scores, labels = masks[solid], found.scores[solid], found.pred_classes[solid]
    segments = [
        PostProcessedSegment(id=index, label_id=label, was_fused=False, score=score)
        for index, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True))
    ]
    return PostProcessed(segmentation=_in_form(masks, form), segments_info=segments)


def _resize_nearest(masks: Tensor, size: Size) -> Tensor:
    """Resize masks n×h×w (bool) to n×H×W."""
    if tuple(masks.shape[1:]) == size:
        return masks
    if not len(masks):  # F.interpolate rejects an empty batch
        return masks.new_zeros((0, *size))
    return F.interpolate(masks[None].byte(), size=size, mode="nearest")[0].bool()


def _in_form(masks: Tensor, form: Form) -> Any:
    """Convert masks n×H×W (bool) to a form of :func:`post_process_instance`."""
    if form == "masks":
        return masks
    if form == "rle":
        return [encode_mask(mask) for mask in masks.cpu().numpy()]
    ids = torch.full(masks.shape[1:], -1, dtype=torch.int32, device=masks.device)
    for index, mask in enumerate(masks):
        ids[mask] = index
    return ids
