"""COCO's run-length encoding (RLE) of masks.

An RLE is a dict of ``size`` ([H, W]) and ``counts``: the lengths of alternating runs of pixels
outside and inside the mask, down the columns. All functions here return ``counts`` compressed and
as a string, which JSON can store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask_former.structures import Size

__all__ = [
    "Rle",
    "area_and_box",
    "compress_runs",
    "decode_mask",
    "encode_label_map",
    "encode_mask",
    "encode_polygons",
    "run_lengths",
    "union",
]


class Rle(TypedDict):
    """A mask in COCO's compressed run-length encoding."""

    size: list[int]
    """Height and width in pixels."""
    counts: str


def encode_mask(mask: NDArray[Any]) -> Rle:
    """Encode a mask, H×W, bool or uint8 with values 0 and 1."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask.view(np.uint8))))


def decode_mask(rle: Rle | Mapping[str, Any]) -> NDArray[np.uint8]:
    """Decode a compressed RLE to a mask, H×W, uint8 with values 0 and 1.

    Raises:
        ValueError, TypeError: if ``counts`` is damaged.
    """
    return cast("NDArray[np.uint8]", coco_mask.decode(rle))


def encode_polygons(polygons: list[NDArray[np.float64]], size: Size) -> Rle:
    """Encode the union of polygons, each x0, y0, x1, y1, … in pixels."""
    return union(coco_mask.frPyObjects(polygons, *size))


def union(rles: Sequence[Mapping[str, Any]]) -> Rle:
    """Encode the union of masks of one size; no run of the result is empty, except the first."""
    return _as_text(coco_mask.merge([*rles, rles[0]]))


def run_lengths(counts: str | bytes) -> NDArray[np.int64]:
    """Decompress ``counts``, as pycocotools' ``rleFrString`` does.

    Each character holds 5 bits of a number, the lowest first, and a bit that is set if the number
    goes on; from the fourth number on, they are differences to the number before the last.

    Raises:
        ValueError, TypeError: if it is not such a text.
    """
    data = counts.encode("ascii") if isinstance(counts, str) else counts
    values = np.frombuffer(data, np.uint8).astype(np.int64) - ord("0")
    ends = np.flatnonzero(values & 32 == 0)
    if not len(ends) or ends[-1] != len(values) - 1 or values.min() < 0 or values.max() > 63:
        raise ValueError("its counts are not compressed run lengths")
    digits = np.diff(ends, prepend=-1)
    if digits.max() > 7:
        raise ValueError("a run is longer than any image")
    starts = ends + 1 - digits
    shifts = 5 * (np.arange(len(values)) - np.repeat(starts, digits))
    numbers = np.add.reduceat((values & 31) << shifts, starts)
    numbers -= np.where(values[ends] & 16, np.int64(1) << (5 * digits), 0)  # negative ones
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def compress_runs(lengths: list[int], size: Size) -> Rle:
    """Convert run lengths, which must add up to the number of pixels, to an RLE."""
    return _as_text(coco_mask.frPyObjects({"size": list(size), "counts": lengths}, *size))


def area_and_box(rle: Rle) -> tuple[float, list[float]]:
    """Return the area of a mask and its box (left, top, width, height), in pixels."""
    return float(coco_mask.area(rle)), coco_mask.toBbox(rle).tolist()


def encode_label_map(labels: NDArray[Any]) -> dict[int, Rle]:
    """Encode the mask of each value of an integer map H×W, all in one pass.

    Returns:
        The RLEs by value, in ascending order of the values that occur.
    """
    pixels = labels.ravel(order="F")
    starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))
    ends = np.append(starts[1:], pixels.size)
    by_value = np.argsort(pixels[starts], kind="stable")
    values, starts, ends = pixels[starts][by_value], starts[by_value], ends[by_value]
    present, first = np.unique(values, return_index=True)
    runs_of = np.split(np.stack([starts, ends], axis=1), first[1:])
    encoded = {}
    for value, runs in zip(present.tolist(), runs_of, strict=True):
        # The distances between all starts and ends are the runs outside and inside, alternating.
        lengths = np.diff(runs.ravel(), prepend=0, append=pixels.size).tolist()
        encoded[value] = compress_runs(lengths if lengths[-1] else lengths[:-1], labels.shape)
    return encoded


def _as_text(rle: Mapping[str, Any]) -> Rle:
    return Rle(size=list(rle["size"]), counts=rle["counts"].decode("ascii"))
