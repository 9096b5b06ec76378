"""Convert segmentation maps to targets like the labels of ``MaskFormerImageProcessor``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mask_former.data.targets import SegmentMap, index_segments
from mask_former.structures import Size, Target

__all__ = ["encode"]


def encode(
    segmentation_maps: Sequence[Any] | Any,
    instance_id_to_semantic_id: Sequence[Mapping[int, int]] | Mapping[int, int] | None = None,
    *,
    ignore_index: int | None = None,
    do_reduce_labels: bool = False,
    num_classes: int | None = None,
    size: Size | None = None,
    with_valid: bool = False,
) -> list[Target]:
    """Convert segmentation maps to the targets that ``model.criterion`` takes.

    Args:
        segmentation_maps: One map, or one for each image: integers H×W (numpy, torch or PIL), which
            are class ids or, with ``instance_id_to_semantic_id``, instance ids.
        instance_id_to_semantic_id: Class id of every instance id; one mapping for all maps, or one
            for each map.
        ignore_index: Value of pixels that belong to no target; with ``do_reduce_labels`` it is
            compared after the reduction.
        do_reduce_labels: Treat 0 as no target, and reduce every other value (and class id) by one.
        num_classes: Number of classes K; if given, class ids must be in 0 … K-1.
        size: Size (H, W) that masks are padded to with False, on the right and at the bottom; by
            default the largest height and width of the maps.
        with_valid: Also return ``valid``, the pixels that belong to a target.

    Returns:
        One target for each map, in order: ``labels`` N, int64, in ascending order of the map's
        values; ``masks`` N×H×W, bool; and with ``with_valid``, ``valid`` H×W, bool.

    Raises:
        ValueError: If a map is not integers H×W or is larger than ``size``, a class id is not in
            0 … K-1, or the number of mappings differs from that of the maps.
        KeyError: If an instance id is missing in its mapping.
    """
    if not isinstance(segmentation_maps, list | tuple):
        segmentation_maps = [segmentation_maps]
    maps = [_integer_map(values, index) for index, values in enumerate(segmentation_maps)]
    classes = instance_id_to_semantic_id
    each = [classes] * len(maps) if classes is None or isinstance(classes, Mapping) else classes
    if len(each) != len(maps):
        raise ValueError(
            f"There are {len(maps)} segmentation maps and {len(each)} mappings in "
            "instance_id_to_semantic_id: give one for each map, or one for all."
        )
    if size is None:
        size = (
            max((m.shape[0] for m in maps), default=0),
            max((m.shape[1] for m in maps), default=0),
        )
    targets = []
    for index, (values, class_of) in enumerate(zip(maps, each, strict=True)):
        if values.shape[0] > size[0] or values.shape[1] > size[1]:
            raise ValueError(
                f"Segmentation map {index} is {values.shape} (height, width), larger than the size "
                f"to pad to, {tuple(size)}: give a size that holds every map of the batch."
            )
        segments = _segments_of(values, class_of, ignore_index, do_reduce_labels, index)
        _check_classes(segments.labels, num_classes, index)
        labels, masks = segments.targets(size)
        target = Target(labels=labels, masks=masks)
        if with_valid:
            target["valid"] = segments.valid_mask(size)
        targets.append(target)
    return targets


def _integer_map(values: Any, index: int) -> NDArray[Any]:
    """Return integers H×W as an array."""
    array = values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"Segmentation map {index} is {array.dtype} of shape {array.shape}; expected integers "
            "H×W, one id for each pixel. (mask_former.data.targets.decode_segment_ids converts a "
            "colour PNG of COCO's panoptic format.)"
        )
    return array


def _segments_of(
    values: NDArray[Any],
    class_of: Mapping[int, int] | None,
    ignore_index: int | None,
    reduce: bool,
    index: int,
) -> SegmentMap:
    """Find the values of a map that are targets, and their classes."""
    ids = [
        value
        for value in np.unique(values).tolist()
        if not (reduce and value == 0) and value - reduce != ignore_index
    ]
    unknown = [] if class_of is None else [value for value in ids if value not in class_of]
    if unknown:
        raise KeyError(
            f"Segmentation map {index} has the instance ids {unknown[:5]}, which are missing in "
            "instance_id_to_semantic_id: add them, or set ignore_index if they are not instances."
        )
    labels = [(value if class_of is None else class_of[value]) - reduce for value in ids]
    index_map, _ = index_segments(values, ids)
    indices = np.arange(1, len(ids) + 1)
    return SegmentMap(index_map, indices, np.array(labels, dtype=np.int64), void=0)


def _check_classes(labels: NDArray[Any], num_classes: int | None, index: int) -> None:
    wrong = labels[(labels < 0) | (labels >= (num_classes or np.inf))]
    if len(wrong):
        expected = "not negative" if num_classes is None else f"in 0 … {num_classes - 1}"
        raise ValueError(
            f"Segmentation map {index} has the class ids {wrong[:5].tolist()}; expected ids "
            f"{expected}. Set ignore_index if these pixels have no class, or do_reduce_labels if "
            "the value 0 means no class."
        )
