"""The point rule: mask losses and matching costs at sampled points instead of all pixels.

PointRend (arXiv 1912.08193) chooses points where a prediction is uncertain, Mask2Former
(arXiv 2112.01527, section 3.3) trains with them. Points are (x, y), from (0, 0) at the top left
corner of the image to (1, 1) at the bottom right; they are drawn with torch's default generator.
The matcher and the losses use the same :class:`PointRule`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from torch import Tensor

from mask_former.ops.mask_points import MaskReader, mask_reader

__all__ = ["PADDINGS", "TARGETS", "PointRule", "random_points", "uncertain_points"]

PADDINGS = ("border", "zeros")
TARGETS = ("nearest", "bilinear")
_CERTAIN = 1e4
"""Logit of cells that must not be chosen as uncertain."""
_MOST_CANDIDATES = 1 << 24
"""Maximum number of candidate points of one mask."""
_CANDIDATES = 1 << 22
"""Maximum number of candidate points of all masks that are examined at a time."""


@dataclass(frozen=True)
class PointRule:
    """Number of points, how the losses choose them, and how masks are sampled at them.

    Raises:
        ValueError: if a value is out of range; the message names its key.
    """

    num_points: int
    """Number of points per image in matching, and per matched pair in the losses."""
    oversample_ratio: float = 3.0
    """Number of random candidates per point from which the losses choose."""
    importance_sample_ratio: float = 0.75
    """Fraction of the losses' points that are the most uncertain candidates; others are random."""
    padding: str = "border"
    """Value of a map outside the centres of its outermost cells: that of the nearest cell
    ("border"), or fading to 0 within half a cell ("zeros", as in Mask2Former)."""
    targets: str = "nearest"
    """Value of a target at a point: that of the pixel around it ("nearest"), or, in [0, 1],
    interpolated between pixel centres, with ``padding`` outside ("bilinear")."""

    def __post_init__(self) -> None:
        fraction = self.importance_sample_ratio
        for key, value, fits, expected in (
            ("TRAIN_NUM_POINTS", self.num_points, self.num_points >= 1, "1 or more (0: no points)"),
            ("OVERSAMPLE_RATIO", self.oversample_ratio, self.oversample_ratio >= 1, "1 or more"),
            ("IMPORTANCE_SAMPLE_RATIO", fraction, 0 <= fraction <= 1, "a fraction in [0, 1]"),
            ("POINT_PADDING", self.padding, self.padding in PADDINGS, f"one of {PADDINGS}"),
            ("POINT_TARGETS", self.targets, self.targets in TARGETS, f"one of {TARGETS}"),
        ):
            if not fits:
                raise ValueError(f"MODEL.MASK_FORMER.{key} is {value!r}, expected {expected}.")
        if self.num_points * self.oversample_ratio > _MOST_CANDIDATES:
            raise ValueError(
                f"MODEL.MASK_FORMER.TRAIN_NUM_POINTS is {self.num_points} and OVERSAMPLE_RATIO "
                f"{self.oversample_ratio}; expected at most {_MOST_CANDIDATES} candidates in all, "
                "their product: set one of them to a smaller number."
            )

    def read_logits(self, maps: Tensor, points: Tensor) -> Tensor:
        """Sample maps at points, with bilinear interpolation between cell centres.

        Args:
            maps: M×h×w, of any float type.
            points: M×P×2, different for each map, or P×2, the same for all maps.

        Returns:
            M×P, fp32.
        """
        options = {"align_corners": False, "padding_mode": self.padding}
        if points.dim() == 2:
            return point_sample(maps.float()[None], points[None], **options)[0]
        return point_sample(maps.float()[:, None], points, **options)[:, 0]

    def mask_reader(self, masks: Tensor) -> MaskReader:
        """Prepare target masks for sampling.

        Args:
            masks: N×H×W, bool.

        Returns:
            A function of points, P×2, the same for all masks, or M×P×2 with a second argument: M,
            the index of the mask that each row of points belongs to. It returns N×P or M×P, bool if
            ``targets`` is "nearest", else fp32 in [0, 1].
        """
        if self.targets == "nearest":
            return partial(read_pixels, masks)
        return mask_reader(masks, border=self.padding == "border")


def read_pixels(masks: Tensor, points: Tensor, indices: Tensor | None = None) -> Tensor:
    """Look up the pixels that contain points; see :meth:`PointRule.mask_reader`.

    The masks are not copied. Returns N×P or M×P, bool.
    """
    height, width = masks.shape[-2:]
    columns = (points[..., 0] * width).long().clamp_(0, width - 1)
    rows = (points[..., 1] * height).long().clamp_(0, height - 1)
    if indices is None:
        return masks[:, rows, columns]
    return masks[indices[:, None], rows, columns]


def random_points(count: int, device: torch.device) -> Tensor:
    """Draw uniform random points in [0, 1)²: ``count × 2``."""
    return torch.rand(count, 2, device=device)


@torch.no_grad()
def uncertain_points(logits: Tensor, rule: PointRule, valid: Tensor | None = None) -> Tensor:
    """Choose for each mask the points where its logit is nearest to 0, and some random ones.

    Args:
        logits: M×h×w, mask logits.
        rule: number of points and of candidates.
        valid: M×h×w, bool; cells where it is False are chosen as uncertain only if nothing else is
            left. None: all may be chosen.

    Returns:
        M×P×2, (x, y) in [0, 1].
    """
    if not len(logits):
        return logits.new_zeros(0, rule.num_points, 2)
    step = max(1, _CANDIDATES // int(rule.num_points * rule.oversample_ratio))
    points = []
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        if valid is not None:
            part = part.masked_fill(~valid[start : start + step], _CERTAIN)
        points.append(
            get_uncertain_point_coords_with_randomness(
                part[:, None],
                lambda sampled: -sampled.abs(),
                rule.num_points,
                rule.oversample_ratio,
                rule.importance_sample_ratio,
            )
        )
    return torch.cat(points)
