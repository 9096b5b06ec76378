"""The cells that each query attends to in Mask2Former's masked attention (arXiv 2112.01527, 3.2).

Reference: :func:`attended_cells` with the mask features themselves, which predicts the masks at
full resolution and resizes them to the level of the next layer. Fast: the same with
:func:`level_features`, which are resized to each level once. Both steps are linear, so they
commute: a mask is the product of a query's kernel with the mask features at each cell.

Saves: the mask logits at stride 4 of all layers but the last in inference, 64 times as many as the
coarsest level has cells, and their resizing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .lazy_masks import Size

__all__ = ["attended_cells", "level_features"]


def level_features(mask_features: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    """Resize mask features B×C×h×w (bilinear) to each size, for :func:`attended_cells`.

    They carry no gradient.
    """
    return [_resize(mask_features.detach(), size) for size in sizes]


@torch.no_grad()
def attended_cells(kernels: Tensor, features: Tensor, size: Size) -> Tensor:
    """Find the cells of a level whose mask probability is at least 0.5.

    A query without such a cell attends to all cells.

    Args:
        kernels: B×Q×C, the masks' kernels.
        features: B×C×h×w, mask features, at any resolution.
        size: (h_i, w_i) of the level.

    Returns:
        B×1×Q×(h_i·w_i), bool: True where a query attends, in any head.
    """
    logits = _resize(torch.einsum("bqc,bchw->bqhw", kernels, features), size)
    blocked = logits.flatten(2).sigmoid() < 0.5  # as published: not "logits < 0", which rounds
    return (~blocked | blocked.all(-1, keepdim=True))[:, None]


def _resize(maps: Tensor, size: Size) -> Tensor:
    if tuple(maps.shape[-2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)
