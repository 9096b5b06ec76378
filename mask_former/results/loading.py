"""Reader of results that were saved as .npz."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask_former.data.datasets.classes import Classes
from mask_former.data.targets import MAX_SEGMENT_ID
from mask_former.utils.bounded_files import UnreadableFile, parse_json
from mask_former.utils.errors import short

from .arrays import InstanceResult, PanopticResult
from .image_result import Result

__all__ = ["load_npz"]

_MOST_BYTES = 8 << 30
"""Most memory for the arrays of a result, its masks unpacked."""
_MOST_PIXELS = 1 << 29
"""Largest image; a black one of that size is made if none is given."""


def load_npz(path: str | Path, image: NDArray[np.uint8] | None = None) -> Result:
    """Read a result that :func:`~mask_former.results.npz.save_npz` wrote.

    Args:
        path: The file.
        image: H×W×3, RGB; the file does not hold it. Default: a black image.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: if the file is damaged, too large or not a result, or if the image has
            another size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: expected a file that Result.save(….npz) wrote."
        )
    try:
        headers = _headers(path)
        with np.load(path, allow_pickle=False) as file:
            return _result(_Saved(file, headers), image)
    except Exception as error:  # zipfile and numpy raise almost any type on damaged data
        reason = short(str(error), 300) or type(error).__name__
        raise UnreadableFile(
            f"{path} is not a results file, or the image has another size ({reason}): expected a "
            "file that Result.save(….npz) wrote."
        ) from error


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Read the shape and the type of each array, which its file claims before the content."""
    headers, total = {}, 0
    with zipfile.ZipFile(path) as archive:
        for record in archive.infolist():
            with archive.open(record) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("an array has another version than numpy's 1.0")
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            name = record.filename.removesuffix(".npy")
            if name in headers or min(shape, default=0) < 0:
                raise ValueError(f"{short(name)!r} occurs twice, or has the shape {short(shape)}")
            headers[name] = shape, dtype
            unpacked = 8 if name == "instance_masks" else 1
            total += math.prod(shape) * max(dtype.itemsize, 4) * unpacked
    if total > _MOST_BYTES:
        raise ValueError(f"its arrays take {total} bytes, expected at most {_MOST_BYTES}")
    return headers


class _Saved(NamedTuple):
    """The arrays of a file, each of which is read when it is asked for."""

    file: Any
    """The return value of ``np.load``."""
    headers: dict[str, tuple[tuple[int, ...], np.dtype[Any]]]

    def __contains__(self, name: object) -> bool:
        return name in self.headers

    def text(self, name: str) -> str:
        """Read a text."""
        return str(self.file[name])

    def array(self, name: str, shape: tuple[int, ...], kinds: str = "iu") -> NDArray[Any]:
        """Read an array that has this shape, and integers ("iu") or numbers ("iuf")."""
        found, dtype = self.headers[name]
        if found != shape or dtype.kind not in kinds:
            raise ValueError(f"{name!r} is {found} {dtype}, expected {shape} numbers")
        array: NDArray[Any] = self.file[name]
        if dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name!r} has numbers that are not finite")
        return array


def _result(saved: _Saved, image: NDArray[np.uint8] | None) -> Result:
    height, width = size = _size(saved.array("size", (2,)))
    if image is None:
        image = np.zeros((*size, 3), np.uint8)
    classes = Classes.from_data(parse_json(saved.text("classes"), "'classes'"))
    semantic = shares = panoptic = instances = None
    if "semantic" in saved:
        class_ids = saved.array("semantic", size)
        _check_range(class_ids, -1, len(classes.names), "'semantic'")
        semantic = class_ids.astype(np.int32)
    if "semantic_scores" in saved:
        shares = saved.array("semantic_scores", size, "f")
    if "panoptic_ids" in saved:
        segments = parse_json(saved.text("panoptic_segments"), "'panoptic_segments'")
        _check_segments(segments, len(classes.names))
        ids = saved.array("panoptic_ids", size)
        _check_range(ids, 0, 1 + max([0, *(s["id"] for s in segments)]), "'panoptic_ids'")
        panoptic = PanopticResult(ids.astype(np.int32), segments)
    if "instance_masks" in saved:
        instances = _instances(saved, height, width, classes.names)
    file_name = saved.text("file_name") if "file_name" in saved else None
    return Result(image, classes, semantic, shares, panoptic, instances, file_name)


def _size(sides: NDArray[Any]) -> tuple[int, int]:
    height, width = map(int, sides)
    if min(height, width) < 1 or height * width > _MOST_PIXELS:
        raise ValueError(f"its size is {height, width}, expected at most {_MOST_PIXELS} pixels")
    return height, width


def _check_range(ids: NDArray[Any], first: int, end: int, what: str) -> None:
    low, high = (int(ids.min()), int(ids.max())) if ids.size else (first, first)
    if low < first or (ids.size and high >= end):
        raise ValueError(f"{what} has the ids {low} … {high}, expected {first} … {end - 1}")


def _check_segments(segments: Any, num_classes: int) -> None:
    for segment in segments:
        score = segment.get("score")
        if not (
            type(segment["id"]) is int
            and 0 < segment["id"] <= MAX_SEGMENT_ID
            and type(segment["category_id"]) is int
            and 0 <= segment["category_id"] < num_classes
            and segment["isthing"] in (True, False)
            and (score is None or (isinstance(score, int | float) and math.isfinite(score)))
        ):
            raise ValueError(
                f"'panoptic_segments' has {short(segment)}, expected an id, a category_id below "
                f"{num_classes}, isthing (true or false) and a score"
            )


def _instances(saved: _Saved, height: int, width: int, names: list[str]) -> InstanceResult:
    count = saved.headers["instance_scores"][0][0]
    scores = saved.array("instance_scores", (count,), "iuf")
    boxes = saved.array("instance_boxes", (count, 4), "iuf")
    class_ids = saved.array("instance_class_ids", (count,))
    _check_range(class_ids, 0, len(names), "'instance_class_ids'")
    packed = saved.array("instance_masks", (count, height, -(-width // 8)))
    masks = np.unpackbits(packed, axis=-1, count=width).view(bool)
    return InstanceResult(masks, boxes, scores, class_ids, [names[i] for i in class_ids])
