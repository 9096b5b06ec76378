"""The point rule: mask losses and matching costs at sampled points instead of all pixels.

PointRend (arXiv 1912.08193) chooses points where a prediction is uncertain, Mask2Former
(arXiv 2112.01527, section 3.3) trains with them. Points are (x, y) in [0, 1] × [0, 1], the corners
of the image; they come from torch's default generator. The matcher and the losses read the same
:class:`PointRule`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from torch import Tensor

__all__ = ["PADDINGS", "TARGETS", "PointRule", "random_points", "uncertain_points"]

PADDINGS = ("border", "zeros")
TARGETS = ("nearest", "bilinear")
_CERTAIN = 1e4
"""The logit of cells that must not be chosen as uncertain."""
_CANDIDATES = 1 << 22
"""Candidates that are examined at a time: there are several for each chosen point."""


@dataclass(frozen=True)
class PointRule:
    """The number of points, their choice in the losses, and the reading of masks at them.

    Raises:
        ValueError: for a value out of range; names its key.
    """

    num_points: int
    """Points of an image in matching, and of each matched pair in the losses."""
    oversample_ratio: float = 3.0
    """Random points that those of the losses are chosen from, × ``num_points``."""
    importance_sample_ratio: float = 0.75
    """Share of the losses' points that are the most uncertain ones; the others are random."""
    padding: str = "border"
    """Outside the centres of the outermost cells a map continues ("border") or fades to 0 within
    half a cell ("zeros", as in Mask2Former)."""
    targets: str = "nearest"
    """A target is the pixel that a point lies in ("nearest") or is interpolated between pixel
    centres, with ``padding`` outside, and is then a share in [0, 1] ("bilinear")."""

    def __post_init__(self) -> None:
        share = self.importance_sample_ratio
        for key, value, fits, expected in (
            ("TRAIN_NUM_POINTS", self.num_points, self.num_points >= 1, "1 or more (0: no points)"),
            ("OVERSAMPLE_RATIO", self.oversample_ratio, self.oversample_ratio >= 1, "1 or more"),
            ("IMPORTANCE_SAMPLE_RATIO", share, 0 <= share <= 1, "a share in [0, 1]"),
            ("POINT_PADDING", self.padding, self.padding in PADDINGS, f"one of {PADDINGS}"),
            ("POINT_TARGETS", self.targets, self.targets in TARGETS, f"one of {TARGETS}"),
        ):
            if not fits:
                raise ValueError(f"MODEL.MASK_FORMER.{key} is {value!r}, expected {expected}.")

    def read_logits(self, maps: Tensor, points: Tensor) -> Tensor:
        """Read maps at points, bilinear between the centres of their cells.

        Args:
            maps: M×h×w, any float type.
            points: M×P×2, each map's own; or P×2, the same for all maps.

        Returns:
            M×P, fp32.
        """
        options = {"align_corners": False, "padding_mode": self.padding}
        if points.dim() == 2:
            return point_sample(maps.float()[None], points[None], **options)[0]
        return point_sample(maps.float()[:, None], points, **options)[:, 0]

    def read_masks(self, masks: Tensor, points: Tensor, indices: Tensor | None = None) -> Tensor:
        """Read target masks at points.

        Args:
            masks: N×H×W, bool.
            points: P×2, the same for all masks; or, with ``indices``, M×P×2.
            indices: M, the index of the mask that each row of points belongs to.

        Returns:
            N×P or M×P: bool if ``targets`` is "nearest", else fp32 in [0, 1].
        """
        if self.targets == "nearest":
            return read_pixels(masks, points, indices)
        return self.read_logits(masks if indices is None else masks[indices], points)


def read_pixels(masks: Tensor, points: Tensor, indices: Tensor | None = None) -> Tensor:
    """Look up the pixels that points lie in; arguments as :meth:`PointRule.read_masks`.

    Masks are never copied, not even as bool. Returns N×P or M×P, bool.
    """
    height, width = masks.shape[-2:]
    columns = (points[..., 0] * width).long().clamp_(0, width - 1)
    rows = (points[..., 1] * height).long().clamp_(0, height - 1)
    if indices is None:
        return masks[:, rows, columns]
    return masks[indices[:, None], rows, columns]


def random_points(count: int, device: torch.device) -> Tensor:
    """Draw ``count × 2`` points, uniform."""
    return torch.rand(count, 2, device=device)


@torch.no_grad()
def uncertain_points(logits: Tensor, rule: PointRule, valid: Tensor | None = None) -> Tensor:
    """Choose for each mask the points where its logit is nearest to 0, and some random ones.

    Args:
        logits: M×h×w, mask logits.
        rule: how many.
        valid: M×h×w, bool; cells where it is False are chosen as uncertain only if nothing else is
            left. None: all may be chosen.

    Returns:
        M×P×2.
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
