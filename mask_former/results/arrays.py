"""Results of one image as numpy arrays, which can be drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mask_former.data.datasets.classes import Classes
from mask_former.structures import RESULTS, SegmentInfo
from mask_former.visualization.legend import LegendRow, add_legend
from mask_former.visualization.overlay import (
    INSTANCE_THRESHOLD,
    Overlay,
    draw,
    mask_overlay,
    panoptic_overlay,
    semantic_overlay,
)

__all__ = ["InstanceResult", "PanopticResult", "ResultArrays"]


class PanopticResult(NamedTuple):
    """Segments that do not overlap: each pixel belongs to one segment or to none."""

    ids: NDArray[np.int32]
    """H×W, segment ids; 0 where there is no segment."""
    segments: list[SegmentInfo]
    """One entry per id: see :class:`mask_former.structures.SegmentInfo`."""


@dataclass(frozen=True)
class InstanceResult:
    """N objects, which may overlap, sorted by descending score."""

    masks: NDArray[np.bool_]
    """N×H×W."""
    boxes: NDArray[np.float32]
    """N×4, XYXY in pixels, right and bottom exclusive."""
    scores: NDArray[np.float32]
    """N values in [0, 1], descending."""
    class_ids: NDArray[np.int64]
    """N contiguous class ids."""
    class_names: list[str]
    """N names."""

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def sorted_by_score(
        cls,
        masks: NDArray[np.bool_],
        boxes: NDArray[np.float32],
        scores: NDArray[np.float32],
        class_ids: NDArray[np.int64],
        classes: Classes,
    ) -> InstanceResult:
        """Build a result from arrays in any order; objects of equal score keep their order."""
        order = np.argsort(-scores, kind="stable")
        class_ids = class_ids[order]
        names = [classes.names[i] for i in class_ids]
        if (order != np.arange(len(order))).any():  # otherwise do not copy large masks
            masks = masks[order]
        return cls(masks, boxes[order], scores[order], class_ids, names)


@dataclass(frozen=True)
class ResultArrays:
    """An image and its results; a kind of result that was not computed is None."""

    image: NDArray[np.uint8]
    """H×W×3, RGB."""
    classes: Classes
    """The K classes that the ids refer to."""
    semantic: NDArray[np.int32] | None = None
    """H×W, contiguous class ids; -1 where there is no class."""
    semantic_scores: NDArray[np.float32] | None = None
    """H×W, in [0, 1]: the score of the pixel's class divided by the sum over all classes."""
    panoptic: PanopticResult | None = None
    instances: InstanceResult | None = None
    file_name: str | None = None
    """File of the image; None if it was not read from a file."""

    def __post_init__(self) -> None:
        size = self.image.shape[:2]
        found = {
            "semantic": self.semantic,
            "semantic_scores": self.semantic_scores,
            "panoptic": None if self.panoptic is None else self.panoptic.ids,
        }
        shapes = {name: array.shape for name, array in found.items() if array is not None}
        if self.instances is not None and len(self.instances):
            shapes["instances"] = self.instances.masks.shape[1:]
        for name, shape in shapes.items():
            if shape != size:
                raise ValueError(
                    f"The image is {size} (H, W), but its {name} result is {shape}; expected the "
                    "same size."
                )

    @property
    def kinds(self) -> list[str]:
        """Kinds of results that exist, in the order "panoptic", "instance", "semantic"."""
        exists = {
            "panoptic": self.panoptic is not None,
            "instance": self.instances is not None,
            "semantic": self.semantic is not None,
        }
        return [kind for kind in RESULTS if exists[kind]]

    def overlay(self, kind: str, threshold: float | None = None) -> Overlay:
        """Compute the regions to paint for a result.

        Args:
            kind: One of :attr:`kinds`.
            threshold: Minimum in [0, 1] for the score of an instance or for a pixel's semantic
                score; others are not painted. Default: ``INSTANCE_THRESHOLD`` for instances, 0 for
                pixels. Panoptic results ignore it, because the model has applied its own threshold.

        Raises:
            ValueError: if the result is missing, or has no semantic scores for a threshold.
        """
        if kind == "panoptic" and self.panoptic is not None:
            return panoptic_overlay(*self.panoptic, self.classes)
        if kind == "semantic" and self.semantic is not None:
            return semantic_overlay(self._confident(self.semantic, threshold or 0.0), self.classes)
        if kind == "instance" and self.instances is not None:
            minimum = INSTANCE_THRESHOLD if threshold is None else threshold
            count = int((self.instances.scores >= minimum).sum())  # scores are sorted
            masks, class_ids = self.instances.masks[:count], self.instances.class_ids[:count]
            scores = self.instances.scores[:count].tolist()
            return mask_overlay(masks, class_ids.tolist(), self.classes, scores)
        raise ValueError(
            f"There is no {kind} result, only {self.kinds}: ask for it with `kinds`, or turn it on "
            "with MODEL.MASK_FORMER.TEST.{PANOPTIC,INSTANCE,SEMANTIC}_ON."
        )

    def _confident(self, class_ids: NDArray[np.int32], threshold: float) -> NDArray[np.int32]:
        if threshold <= 0:
            return class_ids
        if self.semantic_scores is None:
            raise ValueError(
                f"The threshold is {threshold}, but this semantic result has no semantic_scores to "
                "compare with it: leave the threshold out."
            )
        return np.where(self.semantic_scores >= threshold, class_ids, np.int32(-1))

    def draw(
        self,
        kind: str | None = None,
        *,
        threshold: float | None = None,
        opacity: float = 0.5,
        legend: bool = False,
        scale: int = 1,
    ) -> NDArray[np.uint8]:
        """Draw a result over the image, with outlines and labels.

        Args:
            kind: One of :attr:`kinds`. Default: the first of them.
            threshold: See :meth:`overlay`.
            opacity: Opacity of the paint, in [0, 1].
            legend: Add a panel next to or below the image, whichever takes less room, with the
                classes in the result, the number of objects of each thing class, and the share of
                the image that each class covers.
            scale: Factor by which the image is upsampled first, to make room for labels.

        Returns:
            (scale·H)×(scale·W)×3, RGB, plus the panel of the legend.

        Raises:
            ValueError: if the result is missing.
        """
        kind = self._kind(kind)
        overlay = self.overlay(kind, threshold)
        drawing = draw(self.image, overlay, opacity, scale)
        return add_legend(drawing, self._legend(overlay, kind)) if legend else drawing

    def _kind(self, kind: str | None) -> str:
        if kind is None and not self.kinds:
            raise ValueError(
                "The result is empty: it has no panoptic, instance or semantic result to draw."
            )
        return kind or self.kinds[0]

    def _legend(self, overlay: Overlay, kind: str) -> list[LegendRow]:
        """Build a row for each painted class, by descending area."""
        areas = np.bincount(overlay.ids.ravel(), minlength=len(overlay.regions) + 1)[1:]
        rows = []
        for class_id in sorted(set(overlay.class_ids)):
            own = [area for area, i in zip(areas, overlay.class_ids, strict=True) if i == class_id]
            counted = kind != "semantic" and (self.classes.is_thing[class_id] or len(own) > 1)
            name = f"{self.classes.names[class_id]} ×{len(own)}" if counted else ""
            swatch = np.array([[self.classes.colors[class_id]]], np.uint8)
            share = float(sum(own)) / overlay.ids.size
            rows.append(LegendRow(swatch, name or self.classes.names[class_id], share))
        return sorted(rows, key=lambda row: -row.share)
