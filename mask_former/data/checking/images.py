"""Collect all errors of an image and its annotations; a mapper would stop at the first.

The files are read with the mappers' readers, whose exceptions are collected.
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
    """One error of a file, or a note about it."""

    file: str
    message: str
    is_error: bool = True
    """False for a note about something that may be intended."""


@dataclass(frozen=True)
class ClassTable:
    """The K classes that the annotations are checked against."""

    names: Sequence[str]
    ignore_label: int | None = None
    """The value of pixels without a class; None if there are no label maps."""

    @property
    def num_classes(self) -> int:
        """The number of classes, K."""
        return len(self.names)


@dataclass
class ImageCheck:
    """The result of checking an image and its annotation."""

    findings: list[Finding] = field(default_factory=list)
    size: tuple[int, int] | None = None
    """Height and width in pixels, after any EXIF rotation; None: the image is unreadable."""
    pixels: Counter[int] = field(default_factory=Counter)
    """Number of pixels by class id, or by unknown label; overlapping instances each count."""
    num_targets: int = 0
    """Number of segments, of instances, or of classes in a label map."""

    @contextmanager
    def collecting(self, file: str) -> Iterator[None]:
        """Convert an exception of a reader into an error of ``file``."""
        try:
            yield
        except (FileNotFoundError, KeyError, ValueError) as error:
            self.findings.append(Finding(file, message_of(error)))


def check_image(record: Record, classes: ClassTable) -> ImageCheck:
    """Check an image and every annotation that its record names.

    Args:
        record: ``file_name`` and some of ``pan_seg_file_name`` with ``segments_info``,
            ``sem_seg_file_name`` (with an optional ``label_map``) and ``annotations`` (COCO
            polygons or RLEs). A ``category_id`` is contiguous, or None if the source has already
            reported it as unknown.
        classes: the classes of the annotations.
    """
    check = ImageCheck()
    image_file = record["file_name"]
    image = None
    with check.collecting(image_file):
        image = read_image(image_file, "file_name", "RGB")
        check.size = (image.shape[0], image.shape[1])
        detection_utils.check_image_size(dict(record), image)
    has_any = False
    for key, check_annotation in _CHECKS.items():
        if key not in record:
            continue
        # Every annotation is checked, but only the pixels and targets of the first are counted.
        part = ImageCheck(size=check.size)
        with part.collecting(str(record[key]) if key.endswith("file_name") else image_file):
            check_annotation(record, image, classes, part)
        check.findings += part.findings
        if not has_any:
            check.pixels, check.num_targets = part.pixels, part.num_targets
            has_any = True
            if not part.findings and not any(0 <= c < classes.num_classes for c in part.pixels):
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
    with check.collecting(file):
        _check_class_ids(class_ids, classes, f"'segments_info' of {file}")
    index_map = read_segment_map(file, [info["id"] for info in infos])
    # The map's type can hold more values than there are segments.
    areas = count_values(index_map)[1 : len(infos) + 1].tolist()
    for class_id, area in zip(class_ids, areas, strict=True):
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
    with check.collecting(file):
        _check_size(record["file_name"], image, file, labels)
    wanted = [value for value in present if value != classes.ignore_label]
    _check_class_ids(wanted, classes, file, f"The ignore label is {classes.ignore_label}.")


def _check_instances(
    record: Record, image: NDArray[Any] | None, classes: ClassTable, check: ImageCheck
) -> None:
    annotations = record["annotations"]
    file = record["file_name"]
    class_ids = [annotation["category_id"] for annotation in annotations]
    with check.collecting(file):
        _check_class_ids(class_ids, classes, f"'annotations' of {file}")
    size = check.size
    if size is None:
        return  # the image is unreadable, which is already reported
    for number, annotation in enumerate(annotations):
        name = f"id {annotation['id']}" if "id" in annotation else f"number {number}"
        where = f"{file}: annotation {name}"
        with check.collecting(file):
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
"""Checks by the record's key that names the annotation; the most detailed annotation first."""


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
            f"{error} The sides are swapped: rotate one of the two, or, if the image's EXIF "
            "orientation rotates it, save it upright (PIL's ImageOps.exif_transpose)."
        ) from error


def _about_colors(file: str) -> str:
    """Guess the meaning of a label map with several channels; return "" for any other file."""
    try:
        pixels = read_image(file, "sem_seg_file_name")
    except ValueError:  # reported by the caller
        return ""
    if pixels.ndim != 3 or pixels.shape[2] < 3:
        return ""
    pixels = pixels[..., :3].reshape(-1, 3)
    if (pixels == pixels[:, :1]).all():
        return " Its channels are equal, so it is grey: keep one of them."
    colors = np.unique(pixels, axis=0)
    first = ", ".join(str(tuple(color)) for color in colors[:4].tolist())
    more = ", …" if len(colors) > 4 else ""
    if len(colors) > 256:
        return f" It has {len(colors)} colours: is it a photo, or were labels interpolated?"
    return f" It has {len(colors)} colours, {first}{more}: is it a palette, one for each class?"
