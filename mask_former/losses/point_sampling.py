"""Mask losses and matching costs at sampled points instead of all pixels.

PointRend (arXiv 1912.08193) chooses points where a prediction is uncertain, Mask2Former
(arXiv 2112.01527, section 3.3) trains with them. Points are (x, y) in [0, 1] × [0, 1], the corners
of the image; they come from torch's default generator.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from detectron2.projects.point_rend.point_features import (
    get_uncertain_point_coords_with_randomness,
    point_sample,
)
from torch import Tensor

__all__ = ["PointSampling", "random_points", "read_logits", "read_masks", "uncertain_points"]

_CERTAIN = 1e4
"""The logit of what must not be chosen for its uncertainty."""
_CANDIDATES = 1 << 22
"""How many points are looked at at a time: there are several for each that is chosen."""


@dataclass(frozen=True)
class PointSampling:
    """How many points, and how those of the losses are chosen.

    Raises:
        ValueError: for a number that makes no sense; names its key.
    """

    num_points: int
    """Points of an image in matching, and of each matched pair in the losses."""
    oversample_ratio: float = 3.0
    """Random points that those of the losses are chosen from, × ``num_points``."""
    importance_sample_ratio: float = 0.75
    """Share of the losses' points that are the most uncertain ones; the others are random."""

    def __post_init__(self) -> None:
        for key, value, fits, expected in (
            ("TRAIN_NUM_POINTS", self.num_points, self.num_points >= 1, "1 or more (0: no points)"),
            ("OVERSAMPLE_RATIO", self.oversample_ratio, self.oversample_ratio >= 1, "1 or more"),
            (
                "IMPORTANCE_SAMPLE_RATIO",
                self.importance_sample_ratio,
                0 <= self.importance_sample_ratio <= 1,
                "a share in [0, 1]",
            ),
        ):
            if not fits:
                raise ValueError(f"MODEL.MASK_FORMER.{key} is {value}, expected {expected}.")


def random_points(count: int, device: torch.device) -> Tensor:
    """``count × 2`` points, uniform."""
    return torch.rand(count, 2, device=device)


@torch.no_grad()
def uncertain_points(
    logits: Tensor, sampling: PointSampling, valid: Tensor | None = None
) -> Tensor:
    """For each mask the points where its logit is nearest to 0, and some random ones.

    Args:
        logits: M×h×w, mask logits.
        sampling: how many.
        valid: M×h×w, bool; cells where it is False are chosen for being uncertain only where
            nothing else is left. None: all may be.

    Returns:
        M×P×2.
    """
    if not len(logits):
        return logits.new_zeros(0, sampling.num_points, 2)
    step = max(1, _CANDIDATES // int(sampling.num_points * sampling.oversample_ratio))
    points = []
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        if valid is not None:
            part = part.masked_fill(~valid[start : start + step], _CERTAIN)
        points.append(
            get_uncertain_point_coords_with_randomness(
                part[:, None],
                lambda sampled: -sampled.abs(),
                sampling.num_points,
                sampling.oversample_ratio,
                sampling.importance_sample_ratio,
            )
        )
    return torch.cat(points)


def read_logits(maps: Tensor, points: Tensor) -> Tensor:
    """Maps at points, bilinear between the centres of their cells.

    Args:
        maps: M×h×w, any float type.
        points: M×P×2, each map's own; or P×2, the same for all maps.

    Returns:
        M×P, fp32.
    """
    # "border": outside the outermost centres as where masks are enlarged, not fading to 0
    options = {"align_corners": False, "padding_mode": "border"}
    if points.dim() == 2:
        return point_sample(maps.float()[None], points[None], **options)[0]
    return point_sample(maps.float()[:, None], points, **options)[:, 0]


def read_masks(masks: Tensor, points: Tensor, numbers: Tensor | None = None) -> Tensor:
    """Bool masks at points: what the pixel says that a point lies in.

    Masks are looked up where they lie, so they are never copied, not even as they are.

    Args:
        masks: N×H×W, bool.
        points: P×2, the same for all masks; or, with ``numbers``, M×P×2.
        numbers: M, the mask that each row of points is about.

    Returns:
        N×P or M×P, bool.
    """
    height, width = masks.shape[-2:]
    columns = (points[..., 0] * width).long().clamp_(0, width - 1)
    rows = (points[..., 1] * height).long().clamp_(0, height - 1)
    if numbers is None:
        return masks[:, rows, columns]
    return masks[numbers[:, None], rows, columns]
