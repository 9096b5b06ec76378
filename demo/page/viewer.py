"""Data of the viewer: a drawn image that names the region under the cursor, and a legend.

With the drawing the browser gets an id map (and, for semantic results, a map of scores), so that
pointing at a region sends no request to the server.
"""

from __future__ import annotations

import base64
import io
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.results import Result
from mask_former.visualization.overlay import Overlay, draw

__all__ = ["MAX_SIDE", "NOTHING", "message", "preview", "view"]

MAX_SIDE = 1280
"""Longer side, in pixels, of images sent to the browser; downloads keep the image's own size."""
MIN_SIDE = 400
"""Shorter side, in pixels, below which a drawing is upsampled to make room for labels."""

NOTHING = {"nothing": True}
"""Value that hides the viewer while a video is shown; None shows a hint to drop an image in."""


def message(text: str) -> dict[str, Any]:
    """Make the viewer's value that shows a text instead of an image."""
    return {"message": text}


def preview(drawing: NDArray[np.uint8]) -> dict[str, Any]:
    """Make the viewer's value that shows only a drawing (H×W×3), such as a frame of a video."""
    small = drawing[:: _step(drawing.shape), :: _step(drawing.shape)]
    return {"image": _jpeg(small), "width": small.shape[1], "height": small.shape[0]}


def view(result: Result, kind: str, opacity: float) -> dict[str, Any]:
    """Make the viewer's value that shows a result, whose sides have at most ``MAX_SIDE`` pixels.

    Returns:
        kind: kind of the result.
        image: the drawing, a data URL.
        width, height: size of the maps, in pixels; that of the drawing may be a multiple.
        ids: the id map, 0 for no region, ``i`` for ``regions[i - 1]``: uint16, little-endian,
            row by row, compressed with zlib, in base64.
        scores: None, or the score of each pixel's class in [0, 255]: uint8, packed in the same way.
        regions: dicts of name, score in [0, 1], color, and area as a share of the image.
    """
    overlay = result.overlay(kind, 0.0)
    image, ids = result.image, overlay.ids
    height, width = ids.shape
    scale = max(1, min(MIN_SIDE // min(ids.shape), 4 * MIN_SIDE // max(ids.shape)))
    areas = np.bincount(ids.ravel(), minlength=len(overlay.regions) + 1)[1:]
    scores = None
    if kind == "semantic" and result.semantic_scores is not None:
        scores = _pack(result.semantic_scores * 255, np.uint8)
    regions = [
        {"name": name, "score": score, "color": "rgb({}, {}, {})".format(*region.color)}
        for region, (name, score) in zip(
            overlay.regions, _names_and_scores(result, kind, overlay), strict=True
        )
    ]
    for region, area in zip(regions, areas, strict=True):
        region["area"] = float(area) / ids.size
    return {
        "kind": kind,
        "image": _jpeg(draw(image, overlay, opacity, scale)),
        "width": width,
        "height": height,
        "ids": _pack(ids, np.dtype("<u2")),
        "scores": scores,
        "regions": regions,
    }


def _names_and_scores(result: Result, kind: str, overlay: Overlay) -> list[tuple[str, float]]:
    """Return name and score of each region of an overlay, in the order of the result."""
    if kind == "panoptic" and result.panoptic is not None:
        names = result.classes.names
        return [(names[s["category_id"]], s["score"]) for s in result.panoptic.segments]
    if kind == "instance" and result.instances is not None:
        return list(
            zip(result.instances.class_names, result.instances.scores.tolist(), strict=True)
        )
    if result.semantic_scores is None:
        return [(region.label, 1.0) for region in overlay.regions]
    sums = np.bincount(overlay.ids.ravel(), result.semantic_scores.ravel())
    counts = np.bincount(overlay.ids.ravel())
    means = (sums / np.maximum(counts, 1))[1:].tolist()
    return [(region.label, mean) for region, mean in zip(overlay.regions, means, strict=True)]


def _step(shape: tuple[int, ...]) -> int:
    return -(-max(shape) // MAX_SIDE)


def _pack(values: NDArray[Any], dtype: Any) -> str:
    """Pack exact values, which the browser's colour management would change in an image file."""
    return base64.b64encode(zlib.compress(values.astype(dtype).tobytes(), 1)).decode()


def _jpeg(image: NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
