"""Readers of images and annotations, whose error messages explain how to fix the files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from detectron2.utils.file_io import PathManager
from numpy.typing import NDArray

from mask_former.utils.bounded_files import read_bytes
from mask_former.utils.errors import few

from ..targets import MAX_SEGMENT_ID, decode_segment_ids, index_segments
from .pixels import image_errors, read_pixels

__all__ = [
    "check_classes",
    "check_same_size",
    "read_class_map",
    "read_image",
    "read_label_map",
    "read_segment_map",
]


def read_image(file_name: str, key: str, image_format: str | None = None) -> NDArray[Any]:
    """Read the image file that a dataset dict names; see ``read_pixels`` for the pixels.

    Args:
        file_name: a path, or anything else that detectron2's ``PathManager`` opens.
        key: the key of the dataset dict that names the file.
        image_format: "RGB", "BGR" (both uint8), or None for the stored values.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the file is damaged or not an image.
    """
    errors = image_errors(
        f"{file_name}, the '{key}' of a dataset dict,",
        missing="Correct the dataset's paths (for the built-in datasets: the environment variable "
        "DETECTRON2_DATASETS), or restore the file.",
        damaged="Restore the file, or remove it from the dataset.",
    )
    with errors:
        return read_pixels(read_bytes(PathManager.get_local_path(file_name)), image_format)


def read_label_map(file_name: str, key: str = "sem_seg_file_name") -> NDArray[Any]:
    """Read a map of class ids: one channel of 1, 8 or 16 bits, or the indices of a palette image.

    Returns:
        H×W, uint8 or uint16.

    Raises:
        FileNotFoundError, ValueError: as in ``read_image``; also if the file holds colours,
            fractions, or values of more than 16 bits.
    """
    labels = read_image(file_name, key)
    if labels.ndim != 2:
        raise ValueError(
            f"{file_name} has {labels.shape[2]} channels, expected one: a label map holds a class "
            "id at each pixel, not a colour. Convert its colours to class ids (an 8-bit or 16-bit "
            "greyscale or palette PNG)."
        )
    if labels.dtype in (np.uint8, bool):
        return labels.astype(np.uint8, copy=False)
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"{file_name} holds {labels.dtype} values from {labels.min()} to {labels.max()}, "
            "expected class ids, integers in 0..65535. Save it as an 8-bit or 16-bit PNG."
        )
    return labels.astype(np.uint16, copy=False)


def read_class_map(file_name: str, label_map: Mapping[int, int] | None = None) -> NDArray[Any]:
    """Read a label map and convert its values to class ids.

    Args:
        file_name: see ``read_label_map``.
        label_map: pixel value -> class id or ignore label; None: pixels are class ids already.

    Returns:
        H×W, uint8 or uint16.

    Raises:
        FileNotFoundError, ValueError: as in ``read_label_map``; also if a value is not in
            ``label_map``.
    """
    labels = read_label_map(file_name)
    if label_map is None:
        return labels
    class_of = np.full(np.iinfo(np.uint16).max + 1, -1, dtype=np.int32)
    class_of[list(label_map)] = list(label_map.values())
    classes = class_of.take(labels)
    if classes.min(initial=0) < 0:
        raise ValueError(
            f"{file_name}: found the pixel values {few(np.unique(labels[classes < 0]))}, expected "
            f"{few(sorted(label_map))}, the ids of the classes and the ignore label. Give these "
            "values a class, or convert them to one of those."
        )
    return classes.astype(np.min_scalar_type(max(label_map.values())))


def read_segment_map(
    file_name: str, segment_ids: list[int], *, may_be_absent: bool = False
) -> NDArray[Any]:
    """Read a COCO panoptic PNG and replace its ids by their index in ``segment_ids``, from 1.

    Args:
        file_name: the PNG.
        segment_ids: the ids of ``segments_info``.
        may_be_absent: allow ids that no pixel has.

    Returns:
        H×W, uint8 (uint16 for more than 255 segments); 0 where there is no segment.

    Raises:
        FileNotFoundError, ValueError: as in ``read_image``; also if the ids in the file and in
            ``segments_info`` differ.
    """
    wrong = [i for i in segment_ids if type(i) is not int or not 0 < i <= MAX_SEGMENT_ID]
    if wrong or len(set(segment_ids)) < len(segment_ids):
        twice = [i for i, n in Counter(i for i in segment_ids if type(i) is int).items() if n > 1]
        raise ValueError(
            f"'segments_info' of {file_name}: found the ids {few(wrong)}, which are not "
            f"integers in 1..{MAX_SEGMENT_ID}, and {few(twice)} more than once, expected a unique "
            "id for each segment. Write the annotation again with such ids."
        )
    conflict = f"'segments_info' and {file_name} disagree"
    ids = decode_segment_ids(read_image(file_name, "pan_seg_file_name", "RGB"))
    index_map, present = index_segments(ids, segment_ids)
    unknown = sorted(set(present.tolist()) - {0, *segment_ids})
    if unknown:
        raise ValueError(
            f"{conflict}: the ids {few(unknown)} are in the PNG but not in 'segments_info', which "
            f"lists {few(segment_ids)}. An id is R + 256·G + 256²·B of an RGB PNG; is it another "
            "image's PNG, or one written in greyscale or resized with interpolation?"
        )
    absent = sorted(set(segment_ids) - set(present.tolist()))
    if absent and not may_be_absent:
        raise ValueError(
            f"{conflict}: the ids {few(absent)} are in 'segments_info' but at no pixel of the PNG. "
            "Remove them from the annotation, or restore the PNG that belongs to it."
        )
    return index_map


def check_same_size(
    image: NDArray[Any], image_file: str, labels: NDArray[Any], label_file: str
) -> None:
    """Raise ValueError unless an H×W×3 image and an H×W map have the same size."""
    if image.shape[:2] != labels.shape:
        (height, width), (label_height, label_width) = image.shape[:2], labels.shape
        raise ValueError(
            f"{image_file} is {width}×{height} pixels (width×height, any EXIF rotation applied), "
            f"its annotation {label_file} is {label_width}×{label_height}: they must have the same "
            "size. Is it another image's annotation, or was only one of the two resized?"
        )


def check_classes(classes: Iterable[int], num_classes: int, where: str, hint: str) -> None:
    """Check that all class ids are in 0 … ``num_classes``-1.

    Args:
        classes: class ids, without the ignore label.
        num_classes: K.
        where: the file, for the error message.
        hint: likely reasons, for the error message.

    Raises:
        ValueError: if a class id is out of range.
    """
    wrong = sorted({int(c) for c in classes if not 0 <= c < num_classes})
    if wrong:
        raise ValueError(
            f"{where}: found the class ids {few(wrong)}, expected 0..{num_classes - 1} "
            f"(MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}). {hint}"
        )
