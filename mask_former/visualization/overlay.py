"""Drawings of results over an image: colours, outlines and names.

Each kind of result becomes an :class:`Overlay`, an id map with a colour and a label for each id;
:func:`draw` paints it. The colour of a class is the dataset's; each instance of a thing has its own
shade, so that neighbours differ. Drawings are deterministic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.data.datasets.classes import Classes
from mask_former.structures import SegmentInfo
from mask_former.utils.colors import Color, instance_color

from .labels import draw_labels, outlines

__all__ = [
    "INSTANCE_THRESHOLD",
    "Overlay",
    "Region",
    "draw",
    "mask_overlay",
    "panoptic_overlay",
    "semantic_overlay",
]


INSTANCE_THRESHOLD = 0.5
"""Default minimum score of an instance to be drawn."""


class Region(NamedTuple):
    """Label and colour of one drawn segment."""

    label: str
    color: Color


@dataclass(frozen=True)
class Overlay:
    """Regions to paint: a map of ids, with a label and a colour for each id."""

    ids: NDArray[np.int32]
    """H×W; id ``i`` belongs to ``regions[i - 1]``, and 0 is not painted."""
    regions: list[Region]
    class_ids: list[int] = field(default_factory=list)
    """Class of each region, for a legend; empty if no legend is drawn."""


def semantic_overlay(class_ids: NDArray[np.integer], classes: Classes) -> Overlay:
    """Make one region for each class in the map.

    Args:
        class_ids: H×W, contiguous class ids; negative where there is no class.
        classes: The K classes.
    """
    shifted = np.maximum(class_ids, -1) + 1
    present = np.flatnonzero(np.bincount(shifted.ravel(), minlength=len(classes.names) + 1)[1:])
    new_ids = np.zeros(len(classes.names) + 1, np.int32)
    new_ids[present + 1] = np.arange(1, len(present) + 1)
    regions = [Region(classes.names[i], classes.colors[i]) for i in present]
    return Overlay(new_ids[shifted], regions, present.tolist())


def panoptic_overlay(
    ids: NDArray[np.integer], segments: Sequence[SegmentInfo], classes: Classes
) -> Overlay:
    """Make one region for each segment; the labels of things include their score.

    Args:
        ids: H×W, segment ids; 0 where there is no segment.
        segments: The segments that :func:`mask_former.inference.panoptic_inference` returns.
        classes: The K classes.
    """
    new_ids = np.zeros(max([int(ids.max(initial=0)), *(s["id"] for s in segments)]) + 1, np.int32)
    regions = []
    seen: Counter[int] = Counter()
    for segment in segments:
        category = segment["category_id"]
        label, color = classes.names[category], classes.colors[category]
        if segment["isthing"]:
            label = _with_score(label, segment.get("score"))
            color = instance_color(color, seen[category])
            seen[category] += 1
        regions.append(Region(label, color))
        new_ids[segment["id"]] = len(regions)
    class_ids = [segment["category_id"] for segment in segments]
    return Overlay(new_ids[ids], regions, class_ids)


def mask_overlay(
    masks: NDArray[np.bool_],
    class_ids: Sequence[int],
    classes: Classes,
    scores: Sequence[float | None] | None = None,
) -> Overlay:
    """Make one region for each mask; small masks cover large ones, and earlier cover later ones.

    Args:
        masks: N×H×W; they may overlap.
        class_ids: Class id of each mask.
        classes: The K classes.
        scores: Score of each mask for its label, in [0, 1]. Default: labels without scores.
    """
    areas = [np.count_nonzero(mask) for mask in masks]
    ids = np.zeros(masks.shape[1:], np.int32)
    for i in sorted(range(len(masks)), key=lambda i: (-areas[i], -i)):
        ids[masks[i]] = i + 1
    regions = []
    seen: Counter[int] = Counter()
    for category, score in zip(class_ids, scores or [None] * len(masks), strict=True):
        color = instance_color(classes.colors[category], seen[category])
        seen[category] += 1
        regions.append(Region(_with_score(classes.names[category], score), color))
    return Overlay(ids, regions, list(class_ids))


def draw(
    image: NDArray[np.uint8], overlay: Overlay, opacity: float = 0.5, scale: int = 1
) -> NDArray[np.uint8]:
    """Paint regions over an image, with outlines and labels.

    Regions that are too small or too thin for their label are not labelled.

    Args:
        image: H×W×3, RGB.
        overlay: The regions, H×W.
        opacity: Opacity of the paint, in [0, 1].
        scale: Factor by which the image is upsampled first, to make room for labels.

    Returns:
        (scale·H)×(scale·W)×3, RGB.

    Raises:
        ValueError: if the sizes of image and overlay differ.
    """
    if image.shape[:2] != overlay.ids.shape:
        raise ValueError(
            f"The image is {image.shape[:2]} (H, W), but the result is {overlay.ids.shape}; "
            "expected the same size."
        )
    ids = overlay.ids
    if scale > 1:
        height, width = image.shape[:2]
        image = np.asarray(Image.fromarray(image).resize((scale * width, scale * height)))
        ids = ids.repeat(scale, axis=0).repeat(scale, axis=1)
    image = np.ascontiguousarray(image)
    pixels: Any = cv2.addWeighted(image, 1 - opacity, _painted(ids, overlay.regions), opacity, 0)
    pixels = cv2.copyTo(image, (ids == 0).view(np.uint8), pixels)
    lines = outlines(ids, width=max(1, round(np.hypot(*ids.shape) / 800)))
    pixels = cv2.copyTo(cv2.LUT(pixels, _OUTLINED), lines.view(np.uint8), pixels)
    draw_labels(pixels, ids, overlay.regions)
    return pixels


_OUTLINED = (255 - (255 - np.arange(256)) // 3).astype(np.uint8)
"""New value of a pixel on an outline, by its value 0 … 255: one third of it, two thirds white."""


def _painted(ids: NDArray[np.int32], regions: Sequence[Region]) -> NDArray[np.uint8]:
    """Return the colour of each pixel's region, H×W×3; black where there is no region."""
    table = np.zeros((len(regions) + 1, 4), np.uint8)
    table[1:, :3] = [region.color for region in regions] or np.zeros((0, 3))
    # one look-up of four bytes per pixel takes a fifth of the time of three of one byte each
    colors = table.view(np.uint32)[:, 0].take(ids)
    rgba = colors.view(np.uint8).reshape(*ids.shape, 4)
    rgb: Any = cv2.cvtColor(rgba, cv2.COLOR_RGBA2RGB)
    return rgb


def _with_score(label: str, score: float | None) -> str:
    return label if score is None else f"{label} {score:.0%}"
