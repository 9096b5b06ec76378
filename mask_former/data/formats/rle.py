"""COCO's run-length encoding (RLE) of masks.

An RLE is a dict of ``size`` ([H, W]) and ``counts``: the lengths of alternating runs of pixels
outside and inside the mask, down the columns. All functions here return ``counts`` compressed and
as a string, which JSON can store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from mask_former.structures import Size

__all__ = ["Rle", "area_and_box", "compress_runs", "decode_mask", "encode_label_map", "encode_mask"]


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
