"""The sine positional encoding of a feature map (DETR, arXiv 2005.12872, appendix A.4)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["position_of_cells", "sine_position_encoding"]


def _axis_encoding(length: int, channels: int, temperature: float, device: torch.device) -> Tensor:
    """Encode positions along one axis, in (0, 2π], by sines and cosines: ``length × channels``."""
    # 1e-6 is DETR's guard against division by 0; the published weights were trained with it.
    position = torch.arange(1, length + 1, device=device, dtype=torch.float32)
    position = position / (length + 1e-6) * (2 * math.pi)
    frequency = torch.arange(channels // 2, device=device, dtype=torch.float32)
    frequency = temperature ** (2 * frequency / channels)
    angle = position[:, None] / frequency
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


def sine_position_encoding(
    height: int,
    width: int,
    channels: int,
    *,
    temperature: float = 10000.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Encode the position of every cell of a ``height × width`` map.

    The first half of the channels encodes the row, the second half the column, each with sines in
    even and cosines in odd channels. Rows and columns are counted from 1 and scaled so that the
    last one is 2π, whatever the size of the map.

    Returns:
        ``channels × height × width``, float32, values in [-1, 1].

    Raises:
        ValueError: if ``channels`` is not a multiple of 4 (two axes, sine and cosine each).
    """
    if channels % 4:
        raise ValueError(
            f"The sine positional encoding needs a multiple of 4 channels, got {channels}; "
            "change MODEL.MASK_FORMER.HIDDEN_DIM (or MODEL.SEM_SEG_HEAD.CONVS_DIM)."
        )
    device = torch.device(device)
    rows = _axis_encoding(height, channels // 2, temperature, device)
    columns = _axis_encoding(width, channels // 2, temperature, device)
    grid = torch.cat(
        (
            rows[:, None].expand(height, width, -1),
            columns[None].expand(height, width, -1),
        ),
        dim=-1,
    )
    return grid.permute(2, 0, 1)


def position_of_cells(feature_map: Tensor) -> Tensor:
    """Encode the position of every cell of a map B×C×h×w: 1×hw×C, of the map's type."""
    _, channels, height, width = feature_map.shape
    position = sine_position_encoding(height, width, channels, device=feature_map.device)
    return position.to(feature_map.dtype).flatten(1).T[None]
