"""Results drawn over a picture: colours, outlines and names.

Each kind of result becomes an :class:`Overlay`, an id map with a colour and a label for each id;
:func:`draw` paints it. A class has one colour, the dataset's; each instance of a thing has a shade
of its own, so that neighbours can be told apart. What is drawn depends on the result alone.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .colors import Color, instance_color, spread_color
from .labels import draw_labels, outlines
from .structures import SegmentInfo

__all__ = [
    "INSTANCE_THRESHOLD",
    "RESULTS",
    "Classes",
    "Overlay",
    "Region",
    "classes_of",
    "confident_classes",
    "draw",
    "instance_overlay",
    "mask_overlay",
    "overlay_of",
    "panoptic_overlay",
    "semantic_overlay",
]


RESULTS = {"panoptic": "panoptic_seg", "instance": "instances", "semantic": "sem_seg"}
"""The kinds of results, the richest first, and what the model calls them."""
INSTANCE_THRESHOLD = 0.5
"""The score that an instance needs to be drawn, where nothing else is said."""


class Region(NamedTuple):
    """One segment as it is drawn."""

    label: str
    color: Color


@dataclass(frozen=True)
class Overlay:
    """What to paint where."""

    ids: NDArray[np.int32]
    """H×W; 0 is left unpainted, ``i`` belongs to ``regions[i - 1]``."""
    regions: list[Region]


@dataclass(frozen=True)
class Classes:
    """Names and colours of the K classes."""

    names: list[str]
    colors: list[Color]

    @classmethod
    def from_metadata(cls, metadata: Any, num_classes: int) -> Classes:
        """Those of a dataset's metadata; where it has none for K classes, "class 3" and a colour.

        Args:
            metadata: detectron2's, with ``stuff_classes`` or ``thing_classes`` and colours.
            num_classes: K; a list of another length belongs to other classes and is not taken.
        """

        def find(suffix: str) -> list[Any] | None:
            lists = (metadata.get(f"{kind}_{suffix}", None) for kind in ("stuff", "thing"))
            return next((list(one) for one in lists if one and len(one) == num_classes), None)

        names = find("classes") or [f"class {i}" for i in range(num_classes)]
        colors = find("colors") or [spread_color(i) for i in range(num_classes)]
        return cls(names, [(int(r), int(g), int(b)) for r, g, b in colors])


def classes_of(cfg: CfgNode) -> Classes:
    """Names and colours, from the metadata of the config's dataset."""
    dataset = next(iter((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)), "")
    metadata, num_classes = MetadataCatalog.get(dataset), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    named = metadata.get("stuff_classes", None) or metadata.get("thing_classes", None)
    classes = Classes.from_metadata(metadata, num_classes)
    if named and classes.names[0] == "class 0":
        logging.getLogger(__name__).warning(
            f"The dataset {dataset!r} has {len(named)} classes, the model has {num_classes}: they "
            "are drawn without names. DATASETS.TEST says whose names to take."
        )
    return classes


def overlay_of(
    kind: str, results: Mapping[str, Any], classes: Classes, threshold: float | None = None
) -> Overlay:
    """What a model says of an image, as one kind of overlay.

    Args:
        kind: a key of ``RESULTS``.
        results: what the model returns for the image.
        classes: of the K classes.
        threshold: in [0, 1]: the score of an instance, or the share of a pixel's best class, below
            which nothing is painted; None: ``INSTANCE_THRESHOLD`` and 0. A panoptic result is
            drawn as it is: the model's own threshold has been at work.

    Raises:
        ValueError: if the model gives no such result.
    """
    if RESULTS[kind] not in results:
        raise ValueError(f"the model gives no {kind} result, only {sorted(results)}")
    result = results[RESULTS[kind]]
    if kind == "semantic":
        return semantic_overlay(confident_classes(result, threshold or 0.0), classes)
    if kind == "panoptic":
        ids, segments = result
        return panoptic_overlay(ids.cpu().numpy(), segments, classes)
    minimum = INSTANCE_THRESHOLD if threshold is None else threshold
    return instance_overlay(result.to("cpu"), classes, minimum)


def semantic_overlay(class_ids: NDArray[np.integer], classes: Classes) -> Overlay:
    """One region a class that is there.

    Args:
        class_ids: H×W, contiguous class ids; negative where there is none.
        classes: of the K classes.
    """
    shifted = np.maximum(class_ids, -1) + 1
    present = np.flatnonzero(np.bincount(shifted.ravel(), minlength=len(classes.names) + 1)[1:])
    new_ids = np.zeros(len(classes.names) + 1, np.int32)
    new_ids[present + 1] = np.arange(1, len(present) + 1)
    regions = [Region(classes.names[i], classes.colors[i]) for i in present]
    return Overlay(new_ids[shifted], regions)


def confident_classes(scores: Tensor, min_share: float) -> NDArray[np.int64]:
    """The best class of each pixel, where its share of all classes' scores is large enough.

    Args:
        scores: K×H×W, not negative.
        min_share: in [0, 1]; 0: everywhere.

    Returns:
        H×W class ids; -1 where no class is sure enough.
    """
    best, class_ids = scores.max(0)
    share = best / scores.sum(0).clamp(min=torch.finfo(scores.dtype).tiny)  # masks may all be 0
    class_ids[share < min_share] = -1
    return class_ids.cpu().numpy()


def panoptic_overlay(
    ids: NDArray[np.integer], segments: Sequence[SegmentInfo], classes: Classes
) -> Overlay:
    """One region a segment; things carry their score.

    Args:
        ids: H×W, segment ids; 0 is void.
        segments: what :func:`mask_former.inference.panoptic_inference` says of them.
        classes: of the K classes.
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
    return Overlay(new_ids[ids], regions)


def instance_overlay(instances: Instances, classes: Classes, min_score: float) -> Overlay:
    """One region an instance that scores ``min_score`` or more; small ones lie on large ones.

    Args:
        instances: on the CPU, with ``pred_masks`` (bool, n×H×W), ``scores`` and ``pred_classes``.
        classes: of the K classes.
        min_score: in [0, 1].
    """
    kept = instances[instances.scores >= min_score]
    kept = kept[kept.scores.argsort(descending=True, stable=True)]
    class_ids, scores = kept.pred_classes.tolist(), kept.scores.tolist()
    return mask_overlay(kept.pred_masks.numpy(), class_ids, classes, scores)


def mask_overlay(
    masks: NDArray[np.bool_],
    class_ids: Sequence[int],
    classes: Classes,
    scores: Sequence[float | None] | None = None,
) -> Overlay:
    """One region a mask, in their order; small ones lie on large ones, else earlier ones on top.

    Args:
        masks: n×H×W; they may overlap.
        class_ids: of each mask.
        classes: of the K classes.
        scores: in [0, 1], of each mask, to stand in its label; None: no score does.
    """
    areas = masks.sum((1, 2))
    ids = np.zeros(masks.shape[1:], np.int32)
    for i in sorted(range(len(masks)), key=lambda i: (-areas[i], -i)):
        ids[masks[i]] = i + 1
    regions = []
    seen: Counter[int] = Counter()
    for category, score in zip(class_ids, scores or [None] * len(masks), strict=True):
        color = instance_color(classes.colors[category], seen[category])
        seen[category] += 1
        regions.append(Region(_with_score(classes.names[category], score), color))
    return Overlay(ids, regions)


def draw(
    image: NDArray[np.uint8], overlay: Overlay, opacity: float = 0.5, scale: int = 1
) -> NDArray[np.uint8]:
    """The picture with the regions painted over it, outlined and named.

    Regions that are too small or too thin for their label have none.

    Args:
        image: H×W×3, RGB.
        overlay: of the same size.
        opacity: of the paint, from 0 (not there) to 1.
        scale: enlarges the picture first, which makes room for labels.

    Returns:
        (scale·H)×(scale·W)×3, RGB.

    Raises:
        ValueError: if image and overlay differ in size.
    """
    if image.shape[:2] != overlay.ids.shape:
        raise ValueError(f"The image is {image.shape[:2]}, the result {overlay.ids.shape}.")
    picture, ids = Image.fromarray(image), overlay.ids
    if scale > 1:
        picture = picture.resize((scale * picture.width, scale * picture.height))
        ids = ids.repeat(scale, axis=0).repeat(scale, axis=1)
    colors = np.array([(0, 0, 0), *(region.color for region in overlay.regions)], np.uint8)
    painted = colors[ids]
    np.copyto(painted, np.asarray(picture), where=(ids == 0)[..., None])
    pixels = np.array(Image.blend(picture, Image.fromarray(painted), opacity))
    lines = outlines(ids, width=max(1, round(np.hypot(*ids.shape) / 800)))
    pixels[lines] = 255 - (255 - pixels[lines]) // 3
    canvas = Image.fromarray(pixels)
    draw_labels(canvas, ids, overlay.regions)
    return np.asarray(canvas)


def _with_score(label: str, score: float | None) -> str:
    return label if score is None else f"{label} {score:.0%}"
