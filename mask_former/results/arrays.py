"""Results of one image as plain data: numpy arrays, and how to draw them."""

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
    """One segment a pixel."""

    ids: NDArray[np.int32]
    """H×W, segment ids; 0 is void."""
    segments: list[SegmentInfo]
    """What there is to say of each id: see :class:`mask_former.structures.SegmentInfo`."""


@dataclass(frozen=True)
class InstanceResult:
    """n objects, which may overlap, those of high scores first."""

    masks: NDArray[np.bool_]
    """n×H×W."""
    boxes: NDArray[np.float32]
    """n×4, XYXY in pixels, right and bottom exclusive."""
    scores: NDArray[np.float32]
    """n, in [0, 1], descending."""
    class_ids: NDArray[np.int64]
    """n, contiguous."""
    class_names: list[str]
    """n."""

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
        """From arrays in any order; equal scores keep theirs."""
        order = np.argsort(-scores, kind="stable")
        class_ids = class_ids[order]
        names = [classes.names[i] for i in class_ids]
        if (order != np.arange(len(order))).any():  # else copying large masks can be saved
            masks = masks[order]
        return cls(masks, boxes[order], scores[order], class_ids, names)


@dataclass(frozen=True)
class ResultArrays:
    """An image and its results; a kind of result that was not computed is None."""

    image: NDArray[np.uint8]
    """H×W×3, RGB."""
    classes: Classes
    """Of the K classes."""
    semantic: NDArray[np.int32] | None = None
    """H×W, contiguous class ids; -1 where there is none."""
    semantic_scores: NDArray[np.float32] | None = None
    """H×W, in [0, 1]: the share of the pixel's class of all classes' scores."""
    panoptic: PanopticResult | None = None
    instances: InstanceResult | None = None
    file_name: str | None = None
    """Of the picture, where it has one."""

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
                raise ValueError(f"The image is {size} (H, W), its {name} result {shape}.")

    @property
    def kinds(self) -> list[str]:
        """The kinds of results that are there, of "panoptic", "instance", "semantic" in turn."""
        there = {
            "panoptic": self.panoptic is not None,
            "instance": self.instances is not None,
            "semantic": self.semantic is not None,
        }
        return [kind for kind in RESULTS if there[kind]]

    def overlay(self, kind: str, threshold: float | None = None) -> Overlay:
        """What to paint where.

        Args:
            kind: one of :attr:`kinds`.
            threshold: in [0, 1]: the score of an instance, or the share of a pixel's class, below
                which nothing is painted; None: ``INSTANCE_THRESHOLD`` and 0. A panoptic result is
                drawn as it is: the model's own threshold has been at work.

        Raises:
            ValueError: if there is no such result, or no shares for the threshold.
        """
        if kind == "panoptic" and self.panoptic is not None:
            return panoptic_overlay(*self.panoptic, self.classes)
        if kind == "semantic" and self.semantic is not None:
            return semantic_overlay(self._confident(self.semantic, threshold or 0.0), self.classes)
        if kind == "instance" and self.instances is not None:
            minimum = INSTANCE_THRESHOLD if threshold is None else threshold
            count = int((self.instances.scores >= minimum).sum())  # they are sorted
            masks, class_ids = self.instances.masks[:count], self.instances.class_ids[:count]
            scores = self.instances.scores[:count].tolist()
            return mask_overlay(masks, class_ids.tolist(), self.classes, scores)
        raise ValueError(
            f"There is no {kind} result, only {self.kinds}: MODEL.MASK_FORMER.TEST."
            "{PANOPTIC,INSTANCE,SEMANTIC}_ON, or `kinds`, say which the model gives."
        )

    def _confident(self, class_ids: NDArray[np.int32], threshold: float) -> NDArray[np.int32]:
        if threshold <= 0:
            return class_ids
        if self.semantic_scores is None:
            raise ValueError(
                f"A semantic result without semantic_scores has no threshold, found {threshold}."
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
        """The picture with a result painted over it, outlined and named.

        Args:
            kind: one of :attr:`kinds`; None: the first of them.
            threshold: see :meth:`overlay`.
            opacity: of the paint, from 0 (not there) to 1.
            legend: puts a panel beside or below the picture, whichever is smaller, with the classes
                that are there, how many of each thing, and their share of the picture.
            scale: enlarges the picture first, which makes room for labels.

        Returns:
            (scale·H)×(scale·W)×3, RGB; larger by the panel where there is a legend.

        Raises:
            ValueError: if there is no such result.
        """
        kind = self._kind(kind)
        overlay = self.overlay(kind, threshold)
        picture = draw(self.image, overlay, opacity, scale)
        return add_legend(picture, self._legend(overlay, kind)) if legend else picture

    def _kind(self, kind: str | None) -> str:
        if kind is None and not self.kinds:
            raise ValueError("The result is empty: neither panoptic, nor instance, nor semantic.")
        return kind or self.kinds[0]

    def _legend(self, overlay: Overlay, kind: str) -> list[LegendRow]:
        """A row a class that is painted, those of most pixels first."""
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
