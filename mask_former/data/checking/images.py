"""What is wrong with one image and its annotation: all of it, where the mappers stop at the first.

The checks are the mappers' own readers; here their errors are collected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from numpy.typing import NDArray
from PIL import Image

from mask_former.structures import Record
from mask_former.utils.errors import message_of

from ..formats.readers import (
    check_classes,
    check_same_size,
    read_class_map,
    read_image,
    read_segment_map,
)
from ..targets import count_values
from .instances import instance_area

__all__ = ["ClassTable", "Finding", "ImageCheck", "check_image"]


@dataclass(frozen=True)
class Finding:
    """Something to know about a file."""

    file: str
    message: str
    is_error: bool = True
    """False: it may well be meant so."""


@dataclass(frozen=True)
class ClassTable:
    """The K classes that the annotations should have."""

    names: Sequence[str]
    ignore_label: int | None = None
    """The value of pixels without a class; None where there is no label map."""

    @property
    def num_classes(self) -> int:
        return len(self.names)


@dataclass
class ImageCheck:
    """What was found in an image and its annotation."""

    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """Height and width in pixels, any EXIF rotation applied; None: the image is unreadable."""
    pixels: Counter[int] = field(default_factory=Counter)
    """Pixels by class id, or by label where it is no class; overlapping instances count each."""
    num_targets: int = 0
    """Segments, instances, or classes of a label map."""

    @contextmanager
    def noting(self, file: str) -> Iterator[None]:
        """What goes wrong inside becomes a finding."""
        try:
            yield
        except (FileNotFoundError, KeyError, ValueError) as error:
            self.findings.append(Finding(file, message_of(error)))


def check_image(record: Record, classes: ClassTable) -> ImageCheck:
    """Check an image and every annotation that detectron2's dict of it names.

    Args:
        record: `file_name` and some of `pan_seg_file_name` with `segments_info`,
            `sem_seg_file_name` (with `label_map`, if any) and `annotations` (COCO's polygons or
            RLE). A `category_id` is
            contiguous, or None where the source has reported it.
        classes: of the annotations.
    """
    check = ImageCheck()
    image_file = record["file_name"]
    image = None
    with check.noting(image_file):
        image = read_image(image_file, "file_name", "RGB")
        check.size = (image.shape[0], image.shape[1])
        detection_utils.check_image_size(dict(record), image)
    has_any = False
    for key, look in _CHECKS.items():
        if key not in record:
            continue
        # of several annotations, all are checked, and the first one counts
        one = ImageCheck(size=check.size)
        with one.noting(str(record[key]) if key.endswith("file_name") else image_file):
            look(record, image, classes, one)
        check.findings += one.findings
        if not has_any:
            check.pixels, check.num_targets = one.pixels, one.num_targets
            has_any = True
            if not one.findings and not any(0 <= c < classes.num_classes for c in one.pixels):
                check.findings.append(Finding(image_file, "no pixel has a class.", is_error=False))
    if not has_any:
        message = f"has no annotation: expected one of {list(_CHECKS)}, found {sorted(record)}."
        check.findings.append(Finding(image_file, message))
    return check


def _check_segments(
    record: Record, image: NDArray[Any] | None, classes: ClassTable, check: ImageCheck
) -> None:
    file, infos = record["pan_seg_file_name"], record["segments_info"]
    class_ids = [info["category_id"] for info in infos]
    with check.noting(file):
        _check_class_ids(class_ids, classes, f"'segments_info' of {file}")
    index_map = read_segment_map(file, [info["id"] for info in infos])
    areas = count_values(index_map)[1:].tolist()
    for class_id, area in zip(class_ids, areas, strict=False):  # as many as the type holds
        if class_id is not None:
            check.pixels[class_id] += area
    check.num_targets = sum(not info.get("iscrowd", 0) for info in infos)
    _check_size(record["file_name"], image, file, index_map)


def _check_labels(
    record: Record, image: NDArray[Any] | None, classes: ClassTable, check: ImageCheck
) -> None:
    file = record["sem_seg_file_name"]
    try:
        labels = read_class_map(file, record.get("label_map"))
    except ValueError as error:
        raise ValueError(f"{error}{_about_colors(file)}") from error
    counts = count_values(labels)
    present = np.flatnonzero(counts).tolist()
    check.pixels.update({value: int(counts[value]) for value in present})
    check.num_targets = sum(value < classes.num_classes for value in present)
    with check.noting(file):
        _check_size(record["file_name"], image, file, labels)
    wanted = [value for value in present if value != classes.ignore_label]
    _check_class_ids(wanted, classes, file, f"The ignore label is {classes.ignore_label}.")


def _check_instances(
    record: Record, image: NDArray[Any] | None, classes: ClassTable, check: ImageCheck
) -> None:
    annotations = record["annotations"]
    file = record["file_name"]
    class_ids = [annotation["category_id"] for annotation in annotations]
    with check.noting(file):
        _check_class_ids(class_ids, classes, f"'annotations' of {file}")
    size = check.size
    if size is None:
        return  # the image is unreadable, which is a finding already
    for number, annotation in enumerate(annotations):
        name = f"id {annotation['id']}" if "id" in annotation else f"number {number}"
        where = f"{file}: annotation {name}"
        with check.noting(file):
            area, outside = instance_area(annotation, size, where)
            if annotation["category_id"] is not None:
                check.pixels[annotation["category_id"]] += area
            if outside:
                check.findings.append(Finding(file, outside, is_error=False))
    check.num_targets = sum(not annotation.get("iscrowd", 0) for annotation in annotations)


_CHECKS: Mapping[str, Callable[[Record, NDArray[Any] | None, ClassTable, ImageCheck], None]] = {
    "pan_seg_file_name": _check_segments,
    "sem_seg_file_name": _check_labels,
    "annotations": _check_instances,
}
"""By the key of the dataset dict, the richest first."""


def _check_class_ids(
    class_ids: Sequence[int | None], classes: ClassTable, where: str, hint: str = ""
) -> None:
    known = [class_id for class_id in class_ids if class_id is not None]
    check_classes(known, classes.num_classes, where, hint)


def _check_size(
    image_file: str, image: NDArray[Any] | None, label_file: str, labels: NDArray[Any]
) -> None:
    if image is None:
        return
    try:
        check_same_size(image, image_file, labels, label_file)
    except ValueError as error:
        if image.shape[:2] != labels.shape[::-1]:
            raise
        raise ValueError(
            f"{error} The sides are swapped: rotate one of the two, or, where the image's EXIF "
            "orientation turns it, save it upright (PIL's ImageOps.exif_transpose)."
        ) from error


def _about_colors(file: str) -> str:
    """What a label map of several channels seems to be."""
    with Image.open(file) as picture:
        if len(picture.getbands()) < 3:
            return ""
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    if (pixels == pixels[:, :1]).all():
        return " Its channels are equal, so it is grey: keep one of them."
    colors = np.unique(pixels, axis=0)
    first = ", ".join(str(tuple(color)) for color in colors[:4].tolist())
    more = ", …" if len(colors) > 4 else ""
    if len(colors) > 256:
        return f" It has {len(colors)} colours: is it a photo, or were labels resized smoothly?"
    return f" It has {len(colors)} colours, {first}{more}: is it a palette's, one for each class?"
