"""Panoptic quality (Kirillov et al., *Panoptic Segmentation*, 2019), counted from id maps.

Formulas, rules for void and crowds, and the order of sums are those of `panopticapi`, so that the
figures are its own to the last digit.
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
    "Truth",
    "match_classes",
    "match_segments",
    "pair_counts",
]

METRICS = ("PQ", "SQ", "RQ")


class Truth(NamedTuple):
    """The G true segments of an image."""

    classes: NDArray[Any]
    """G: class indices, 0 … K-1."""
    areas: NDArray[Any]
    """G: pixels."""
    is_crowd: NDArray[Any]
    """G, bool: neither to be found nor to be missed."""
    crowd_of: Mapping[int, int]
    """Class index to the crowd that excuses predictions of that class."""


class Matches(NamedTuple):
    """What one image adds to the counts: class indices of segments, and IoUs in [0, 1]."""

    true_positives: NDArray[Any]
    ious: NDArray[Any]
    """One for each of `true_positives`."""
    false_positives: NDArray[Any]
    false_negatives: NDArray[Any]


def pair_counts(rows: NDArray[Any], columns: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """How often each pair of values occurs at one place of two maps.

    Args:
        rows, columns: unsigned integers of one shape, below `shape[0]` and `shape[1]`.

    Returns:
        `shape`, int64.
    """
    pairs = np.multiply(rows, shape[1], dtype=np.int64)
    pairs += columns
    return np.bincount(pairs.ravel(), minlength=shape[0] * shape[1]).reshape(shape)


def match_segments(common: NDArray[Any], truth: Truth, classes: NDArray[Any]) -> Matches:
    """Match the P predicted segments of an image to the true ones: same class, IoU above ½.

    Pixels without a true segment leave the union. An unmatched prediction that lies more than half
    on them, or on a crowd of its class, is not counted.

    Args:
        common: (1+G)×(1+P), the pixels that two segments share; row 0 is what has no true segment,
            column 0 what has no predicted one.
        truth: the true segments, in the order of the rows.
        classes: P class indices, 0 … K-1, in the order of the columns.
    """
    areas, excused, shared = common[:, 1:].sum(axis=0), common[0, 1:], common[1:, 1:]
    union = truth.areas[:, None] + areas - shared - excused
    # What share pixels have a union; what share none do not match.
    iou = np.divide(shared, union, out=np.zeros(shared.shape), where=shared > 0)
    may_match = (truth.classes[:, None] == classes) & ~truth.is_crowd[:, None]
    found, matched = np.nonzero(may_match & (iou > 0.5))
    missed = ~truth.is_crowd
    missed[found] = False
    for index, crowd in truth.crowd_of.items():
        excused = excused + np.where(classes == index, shared[crowd], 0)
    extra = 2 * excused <= areas
    extra[matched] = False
    return Matches(truth.classes[found], iou[found, matched], classes[extra], truth.classes[missed])


def match_classes(truth: NDArray[Any], prediction: NDArray[Any], num_classes: int) -> Matches:
    """Match label maps in which the pixels of a class are one segment (PQ^st).

    Args:
        truth, prediction: H×W, values 0 … K-1, and K where a pixel has no class.
        num_classes: K.
    """
    side = num_classes + 1
    common = np.roll(pair_counts(truth, prediction, (side, side)), 1, axis=(0, 1))  # void first
    rows, columns = (np.flatnonzero(common.sum(axis=axis)[1:]) for axis in (1, 0))
    areas = common.sum(axis=1)[1:][rows]
    own = Truth(rows, areas, np.zeros(len(rows), dtype=bool), {})
    return match_segments(common[np.ix_([0, *rows + 1], [0, *columns + 1])], own, columns)


class PanopticQuality:
    """PQ, SQ and RQ of K classes: add the matches of each image, then ask."""

    def __init__(self, num_classes: int) -> None:
        self.sums = np.zeros((4, num_classes))
        """IoU of the true positives; numbers of true positives, false ones, false negatives."""

    @classmethod
    def of(cls, images: Sequence[Matches], num_classes: int) -> PanopticQuality:
        """Count all `images`.

        panopticapi sums a part of the images on each of its processes, as many as there are cores,
        and then the parts: that order is kept.
        """
        total = cls(num_classes)
        for part in np.array_split(np.arange(len(images)), cpu_count()):
            quality = cls(num_classes)
            for index in part:
                quality.add(images[index])
            total.sums += quality.sums
        return total

    def add(self, image: Matches) -> None:
        """Count one image."""
        iou, tp, fp, fn = self.sums  # views
        np.add.at(iou, image.true_positives, image.ious)
        np.add.at(tp, image.true_positives, 1)
        np.add.at(fp, image.false_positives, 1)
        np.add.at(fn, image.false_negatives, 1)

    def by_class(self) -> tuple[NDArray[Any], NDArray[Any]]:
        """PQ, SQ and RQ in [0, 1], 3×K, and which classes have a segment, K bool."""
        iou, tp, fp, fn = self.sums
        present = tp + fp + fn > 0
        segments = np.where(present, tp + 0.5 * fp + 0.5 * fn, 1)
        return np.stack([iou / segments, iou / np.maximum(tp, 1), tp / segments]), present

    def mean(self, of: NDArray[Any] | None = None) -> tuple[NDArray[Any], int]:
        """Means of PQ, SQ and RQ over the classes that have a segment.

        Args:
            of: K bool, the classes that count; None: all.

        Returns:
            3 values in [0, 1], nan where no class counts; and how many classes count.
        """
        values, present = self.by_class()
        chosen = values[:, present if of is None else present & of]
        count = chosen.shape[1]
        if not count:
            return np.full(3, np.nan), 0
        return chosen.cumsum(axis=1)[:, -1] / count, count  # one after the other, not in pairs
