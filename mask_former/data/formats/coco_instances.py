"""Convert annotations in COCO's instance format, polygons and RLEs, to masks and back.

https://cocodataset.org/#format-data describes the format; masks are rasterised by ``pycocotools``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures.masks import polygons_to_bitmask
from numpy.typing import NDArray

from mask_former.structures import Size
from mask_former.utils.errors import few, short

from ..instances import Shape
from .readers import read_segment_map
from .rle import (
    Rle,
    area_and_box,
    compress_runs,
    decode_mask,
    encode_mask,
    encode_polygons,
    run_lengths,
    union,
)

__all__ = [
    "check_segmentation",
    "complete",
    "compress",
    "decode_segmentation",
    "instances_of_panoptic",
    "read_shape",
]


_FAR = 10
"""Multiple of the image's longer side; larger coordinates are a mistake."""
_LONGEST_OUTLINE = 4_000_000
"""Pixels: pycocotools needs 40 bytes for each."""


def check_segmentation(segmentation: Any, size: Size, where: str) -> None:
    """Check that a segmentation has one of COCO's forms, without rasterising it.

    Args:
        segmentation: a list of polygons [x0, y0, x1, y1, …] in pixels; an RLE: a dict of ``size``
            and ``counts`` (a list of run lengths, or the compressed text); or an array H×W, not 0
            inside (only in dicts made in Python).
        size: height and width of the image.
        where: file and annotation, for error messages.

    Raises:
        ValueError: if it is empty, a polygon has fewer than three points, an odd number of values
            or points far from the image, or an outline too long for an object, an RLE has no
            counts, or an RLE or an array has another size than the image.
    """
    if isinstance(segmentation, np.ndarray):
        if segmentation.shape != size:
            raise ValueError(
                f"{where}: its segmentation is an array of shape {segmentation.shape}, expected "
                f"the image's (height, width), {size}. Is it another image's annotation?"
            )
        return
    if isinstance(segmentation, Mapping):
        found = segmentation.get("size", ())
        found = tuple(found) if isinstance(found, list | tuple) else found
        if found != size or "counts" not in segmentation or {*map(type, found)} != {int}:
            raise ValueError(
                f"{where}: its RLE has the keys {few(sorted(map(str, segmentation)))} and the size "
                f"{short(found)} (height, width), expected 'counts' and 'size', which is the "
                f"image's, {size}. Is it another image's annotation, or was only the image resized?"
            )
        return
    if not isinstance(segmentation, list | tuple) or not len(segmentation):
        raise ValueError(
            f"{where}: its segmentation is {short(segmentation)}, expected a list of polygons or "
            "an RLE dict. Instance segmentation needs a mask for each object, a box is not enough: "
            "remove the annotation, or draw its mask."
        )
    for polygon in segmentation:
        values = polygon if isinstance(polygon, list | tuple | np.ndarray) else ()
        if len(values) < 6 or len(values) % 2:
            raise ValueError(
                f"{where}: a polygon is {few(values) if len(values) else short(polygon)}, expected "
                "[x0, y0, x1, y1, …] with at least three points and a y for each x. Remove the "
                "polygon, or correct it."
            )
        _check_coordinates(values, size, where)


def _check_coordinates(values: Any, size: Size, where: str) -> None:
    """Check that coordinates are numbers near the image, and not too far from one another.

    pycocotools crashes on NaN, and its run time and memory grow with the length of every edge.
    """
    try:
        points = np.asarray(values)
        is_flat = points.dtype.kind in "iuf" and points.ndim == 1
        largest = float(np.abs(points).max()) if is_flat else np.nan
    except ValueError:  # a nested list
        largest = np.nan
    if not largest <= _FAR * max(size):
        raise ValueError(
            f"{where}: a polygon is {few(values)}, expected numbers: pixel coordinates in an image "
            f"of {size} (height, width). Remove the polygon, or correct it."
        )
    if len(values) * largest > _LONGEST_OUTLINE:  # then its outline may be too long
        corners = np.asarray(values, dtype=np.float64).reshape(-1, 2)
        edges = np.abs(corners - np.roll(corners, 1, axis=0)).max(axis=1)
        if edges.sum() > _LONGEST_OUTLINE:
            raise ValueError(
                f"{where}: the outline of a polygon is {edges.sum():.0f} pixels long, expected at "
                f"most {_LONGEST_OUTLINE}. Remove the polygon, or correct it."
            )


def decode_segmentation(segmentation: Any, size: Size, where: str) -> NDArray[Any]:
    """Rasterise a segmentation; see ``check_segmentation`` for the arguments.

    Returns:
        The mask, H×W, uint8, 0 or 1.

    Raises:
        ValueError: as in ``check_segmentation``, or if the RLE's counts are damaged.
    """
    check_segmentation(segmentation, size, where)
    if isinstance(segmentation, np.ndarray):
        return (segmentation != 0).view(np.uint8)
    if not isinstance(segmentation, Mapping):
        polygons = [np.asarray(polygon, dtype=np.float64) for polygon in segmentation]
        return polygons_to_bitmask(polygons, *size).view(np.uint8)
    return decode_mask(compress(segmentation, size, where))


def read_shape(segmentation: Any, size: Size, where: str) -> Shape:
    """Read a segmentation without rasterising polygons; see ``check_segmentation``.

    Raises:
        ValueError: as in ``decode_segmentation``.
    """
    if not isinstance(segmentation, list | tuple):
        return decode_segmentation(segmentation, size, where)
    check_segmentation(segmentation, size, where)
    return [np.array(polygon, dtype=np.float64).reshape(-1, 2) for polygon in segmentation]


def compress(segmentation: Any, size: Size, where: str) -> Any:
    """Check the run lengths of an RLE, and compress them; return any other segmentation unchanged.

    This is needed because detectron2 does not read lists of run lengths.

    Raises:
        ValueError: if the run lengths are damaged or do not add up to the image's size.
    """
    if not isinstance(segmentation, Mapping):
        return segmentation
    counts = segmentation["counts"]
    if isinstance(counts, list):
        if not all(type(count) is int for count in counts):
            raise ValueError(f"{where}: the counts of its RLE are {few(counts)}, expected numbers.")
        total, least = sum(counts), min(counts, default=0)
    else:
        try:
            lengths = run_lengths(counts)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: its RLE is damaged ({error}): create it again.") from error
        total, least = int(lengths.sum()), int(lengths.min(initial=0))
    if total != size[0] * size[1] or least < 0:
        raise ValueError(
            f"{where}: the counts of its RLE add up to {short(total)} pixels, expected "
            f"{size[0] * size[1]} for {size} (height, width), and no negative counts: create it "
            "again."
        )
    return compress_runs(counts, size) if isinstance(counts, list) else segmentation


def complete(annotation: Mapping[str, Any], size: Size, where: str) -> dict[str, Any]:
    """Add missing ``iscrowd``, ``area`` and ``bbox`` to a COCO annotation.

    Args:
        annotation: a COCO annotation with a ``segmentation``.
        size: height and width of the image.
        where: file and annotation, for error messages.

    Raises:
        ValueError: as in ``decode_segmentation``; also if the box or ``iscrowd`` is malformed.
    """
    full = {"iscrowd": 0, **annotation}
    if "area" not in full or not full.get("bbox"):
        segmentation = annotation.get("segmentation")
        check_segmentation(segmentation, size, where)
        # No H×W mask is made: the size is only what the annotation claims.
        full["area"], full["bbox"] = area_and_box(_encode(segmentation, size, where))
    box = full["bbox"]
    numbers: Sequence[Any] = box if isinstance(box, list | tuple) and len(box) == 4 else ("",)
    if not all(type(v) in (int, float) and math.isfinite(v) for v in numbers) or min(box[2:]) < 0:
        raise ValueError(
            f"{where}: its bbox is {short(box)}, expected [left, top, width, height] in pixels, "
            "finite numbers. Correct it, or remove it: it is then computed from the mask."
        )
    if full["iscrowd"] not in (0, 1):
        raise ValueError(f"{where}: its iscrowd is {short(full['iscrowd'])}, expected 0 or 1.")
    return full


def _encode(segmentation: Any, size: Size, where: str) -> Rle:
    """Convert a segmentation to one RLE, without rasterising it."""
    if isinstance(segmentation, Mapping):
        return union([compress(segmentation, size, where)])
    return encode_polygons([np.asarray(p, dtype=np.float64) for p in segmentation], size)


def instances_of_panoptic(content: Mapping[str, Any], panoptic_root: Path) -> dict[str, Any]:
    """Convert the things of COCO panoptic annotations to COCO instance annotations.

    Args:
        content: a panoptic JSON.
        panoptic_root: the folder of its PNGs, each of which is read.

    Returns:
        The content of an instance JSON: ``images`` (with ``height`` and ``width``), ``annotations``
        (compressed RLEs, ids from 1) and ``categories``; image and category ids are unchanged.

    Raises:
        FileNotFoundError: if a PNG is missing.
        ValueError: if a PNG is damaged, or does not fit the JSON.
    """
    categories = [c for c in content["categories"] if c.get("isthing", 1)]
    things = {category["id"] for category in categories}
    entries = {image["id"]: image for image in content["images"]}
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for entry in content["annotations"]:
        image_id, infos = entry["image_id"], entry["segments_info"]
        png = str(panoptic_root / entry["file_name"])
        indices = read_segment_map(png, [info["id"] for info in infos])
        size = dict(zip(("height", "width"), indices.shape, strict=True))
        images.append({**entries.get(image_id, {"id": image_id}), **size})
        for index, info in enumerate(infos, start=1):
            if info["category_id"] in things:
                annotation = {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": info["category_id"],
                    "iscrowd": info.get("iscrowd", 0),
                    "segmentation": encode_mask(indices == index),
                }
                annotations.append(complete(annotation, indices.shape, png))
    return {"images": images, "annotations": annotations, "categories": categories}
