"""Panoptic quality (Kirillov et al., *Panoptic Segmentation*, 2019) from id maps.

Formulas, rules for void and crowds, and the order of summation are those of ``panopticapi``, so
that the results are identical to the last digit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from multiprocessing import cpu_count
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "METRICS",
    "Matches",
    "PanopticQuality",
    "TrueSegments",
    "match_label_maps",
    "match_segments",
    "pair_counts",
]

METRICS = ("PQ", "SQ", "RQ")


class TrueSegments(NamedTuple):
    """The G ground-truth segments of an image."""

    classes: NDArray[Any]
    """Class indices, G, 0 … K-1."""
    areas: NDArray[Any]
    """Areas in pixels, G."""
    is_crowd: NDArray[Any]
    """Crowd flags, G, bool; a crowd is neither a match nor a false negative."""
    crowd_of: Mapping[int, int]
    """Index of a class's crowd segment, by class index; predictions mostly on it are ignored."""


class Matches(NamedTuple):
    """Matches of one image: class indices of the segments, and IoUs."""

    true_positives: NDArray[Any]
    """Classes of the matched segments."""
    ious: NDArray[Any]
    """IoU in [0, 1] of each matched segment."""
    false_positives: NDArray[Any]
    """Classes of the unmatched predicted segments."""
    false_negatives: NDArray[Any]
    """Classes of the unmatched ground-truth segments."""


def pair_counts(rows: NDArray[Any], columns: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Count how often each pair of values occurs at the same pixel of two maps.

    Args:
        rows: Map of unsigned integers below ``shape[0]``.
        columns: Map of the same shape, of unsigned integers below ``shape[1]``.
        shape: Shape of the returned array.

    Returns:
        The counts, int64; entry (i, j) counts the pixels with i in ``rows`` and j in ``columns``.
    """
    pairs = np.multiply(rows, shape[1], dtype=np.int64)
    pairs += columns
    return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def match_segments(common: NDArray[Any], true: TrueSegments, classes: NDArray[Any]) -> Matches:
    """Match P predicted to G ground-truth segments of an image: same class, IoU above ½.

    Pixels without ground truth are excluded from the union. An unmatched prediction is not counted
    if more than half of it lies on such pixels or on a crowd of its class.

    Args:
        common: Numbers of pixels that two segments share, (1+G)×(1+P). Row 0 counts the pixels
            without a ground-truth segment, column 0 those without a predicted one.
        true: The ground-truth segments, in the order of the rows.
        classes: Class indices of the predicted segments, P, 0 … K-1, in the order of the columns.
    """
    areas, ignored, shared = common[:, 1:].sum(axis=0), common[0, 1:], common[1:, 1:]
    union = true.areas[:, None] + areas - shared - ignored
    # Pairs that share no pixel cannot match; their IoU stays 0.
    iou = np.divide(shared, union, out=np.zeros(shared.shape), where=shared > 0)
    may_match = (true.classes[:, None] == classes) & ~true.is_crowd[:, None]
    found, matched = np.nonzero(may_match & (iou > 0.5))
    missed = ~true.is_crowd
    missed[found] = False
    for index, crowd in true.crowd_of.items():
        ignored = ignored + np.where(classes == index, shared[crowd], 0)
    extra = 2 * ignored <= areas
    extra[matched] = False
    return Matches(true.classes[found], iou[found, matched], classes[extra], true.classes[missed])


def match_label_maps(labels: NDArray[Any], prediction: NDArray[Any], num_classes: int) -> Matches:
    """Match label maps in which all pixels of a class are one segment (PQ^st).

    Args:
        labels: Ground truth, H×W, values 0 … K-1, and K for pixels without a class.
        prediction: Prediction, H×W, with the same values.
        num_classes: K.
    """
    side = num_classes + 1
    common = np.roll(pair_counts(labels, prediction, (side, side)), 1, axis=(0, 1))  # void first
    rows, columns = (np.flatnonzero(common.sum(axis=axis)[1:]) for axis in (1, 0))
    areas = common.sum(axis=1)[1:][rows]
    true = TrueSegments(rows, areas, np.zeros(len(rows), dtype=bool), {})
    return match_segments(common[np.ix_([0, *rows + 1], [0, *columns + 1])], true, columns)


class PanopticQuality:
    """PQ, SQ and RQ of K classes, accumulated over images."""

    def __init__(self, num_classes: int) -> None:
        self.sums = np.zeros((4, num_classes))
        """Sums of IoU and numbers of true positives, false positives and false negatives, 4×K."""

    @classmethod
    def of(cls, images: Sequence[Matches], num_classes: int) -> PanopticQuality:
        """Add all ``images`` in the order in which panopticapi does.

        panopticapi starts a process for each CPU core, each of which sums a part of the images,
        and then adds the parts.
        """
        total = cls(num_classes)
        for part in np.array_split(np.arange(len(images)), cpu_count()):
            quality = cls(num_classes)
            for index in part:
                quality.add(images[index])
            total.sums += quality.sums
        return total

    def add(self, image: Matches) -> None:
        """Add the matches of one image."""
        iou, tp, fp, fn = self.sums  # views
        np.add.at(iou, image.true_positives, image.ious)
        np.add.at(tp, image.true_positives, 1)
        np.add.at(fp, image.false_positives, 1)
        np.add.at(fn, image.false_negatives, 1)

    def by_class(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return PQ, SQ and RQ in [0, 1], 3×K, and a flag for classes with a segment, K, bool."""
        iou, tp, fp, fn = self.sums
        present = tp + fp + fn > 0
        segments = np.where(present, tp + 0.5 * fp + 0.5 * fn, 1)
        return np.stack([iou / segments, iou / np.maximum(tp, 1), tp / segments]), present

    def mean(self, in_group: NDArray[Any] | None = None) -> tuple[NDArray[Any], int]:
        """Return the means of PQ, SQ and RQ over the classes that have a segment.

        Args:
            in_group: Flags of the classes to use, K, bool; None: all classes.

        Returns:
            The three means in [0, 1], NaN if no class is left, and the number of classes.
        """
        values, present = self.by_class()
        chosen = values[:, present if in_group is None else present & in_group]
        count = chosen.shape[1]
        if not count:
            return np.full(3, np.nan), 0
        return chosen.cumsum(axis=1)[:, -1] / count, count  # cumsum adds in panopticapi's order
