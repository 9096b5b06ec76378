"""Values of bool masks at points, interpolated between pixel centres.

Reference: :func:`mask_points_reference`, which converts the mask of each row of points to fp32 and
samples it. Fast: :class:`CornerMasks`, which packs the four pixels around each corner of the grid
of pixels into one byte, so that a point needs one read, and no mask is copied.

Saves: M×H×W in fp32 for the M matched pairs of all layers, which share the N masks of an image
(docs/performance.md).
"""

# Example: a mask of 1×2 pixels, (1, 0), has 2×3 corners. The point (1.25, 0.5), in pixels, lies
# right of the corner in column 1. Padded with 0, the pixels around the corner (row 1, column 1)
# are 1 0 above and 0 0 below it: the byte 1·1 + 0·2 + 0·4 + 0·8 = 1. The point is 0.75 of a pixel
# right of the left pixels' centres and 0 below the upper ones': (1 - 0.75)·1 + 0.75·0 = 0.25.

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import is_reference

__all__ = ["CornerMasks", "mask_points_reference", "mask_reader"]

MaskReader = Callable[..., Tensor]
"""A function of points and indices, as :meth:`CornerMasks.__call__`."""


def mask_reader(masks: Tensor, border: bool) -> MaskReader:
    """Prepare masks N×H×W, bool, for reading at points.

    Args:
        masks: N×H×W, bool.
        border: outside the centres of the outermost pixels, repeat their values; otherwise values
            fade to 0 within half a pixel.
    """
    if is_reference():
        return partial(mask_points_reference, masks, border)
    return CornerMasks(masks, border)


def mask_points_reference(
    masks: Tensor, border: bool, points: Tensor, indices: Tensor | None = None
) -> Tensor:
    """Read masks as :class:`CornerMasks` does, from copies in fp32."""
    if indices is None:
        indices = torch.arange(len(masks), device=masks.device)
        points = points.expand(len(masks), -1, -1)
    if not len(indices):
        return points.new_zeros(0, points.shape[1])
    values = F.grid_sample(
        masks[indices, None].float(),
        2 * points[:, None] - 1,
        padding_mode="border" if border else "zeros",
        align_corners=False,
    )
    return values[:, 0, 0]


class CornerMasks:
    """Masks N×H×W as N×(H+1)×(W+1) bytes: the four pixels around each corner of the pixel grid."""

    def __init__(self, masks: Tensor, border: bool) -> None:
        """Pack the masks; see :func:`mask_reader`."""
        self.border = border
        self.size = (masks.shape[-2], masks.shape[-1])
        padded = F.pad(masks.to(torch.uint8), (1, 1, 1, 1))
        above, below = padded[:, :-1], padded[:, 1:]
        rows = above | below << 2
        self.corners = (rows[..., :-1] | rows[..., 1:] << 1).flatten(1)

    def __call__(self, points: Tensor, indices: Tensor | None = None) -> Tensor:
        """Read the masks.

        Args:
            points: P×2, (x, y) in [0, 1], the same for all masks, or M×P×2 with ``indices``.
            indices: M, the index of the mask that each row of points belongs to.

        Returns:
            N×P or M×P, fp32 in [0, 1].
        """
        height, width = self.size
        column, right = self._split(points[..., 0] * width, width)
        row, down = self._split(points[..., 1] * height, height)
        corner = row * (width + 1) + column
        if indices is None:
            pixels = self.corners[:, corner]
        else:
            pixels = self.corners[indices[:, None], corner]
        upper_left, upper_right, lower_left, lower_right = (
            (pixels >> bit & 1).float() for bit in range(4)
        )
        upper = torch.lerp(upper_left, upper_right, right.expand_as(upper_left))
        lower = torch.lerp(lower_left, lower_right, right.expand_as(upper_left))
        return torch.lerp(upper, lower, down.expand_as(upper))

    def _split(self, position: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Split positions in pixels into corner indices and the way to the next centre, in [0, 1).

        A position p lies between the centres of pixels c - 1 and c if c is the integer part of
        p + 0.5.
        """
        if self.border:
            position = position.clamp(0.5, length - 0.5)
        position = position + 0.5
        corner = position.floor().clamp_(0, length)
        return corner.long(), position - corner
