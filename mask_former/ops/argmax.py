"""Which of several maps is largest at each pixel, by a CPU's vector units."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["largest"]


def largest(values: Tensor, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Where R×N×W is largest along N, and whether no other value comes within ``margin`` of it.

    The same as ``argmax``, which is slower on a CPU than the product that ``values`` came from:
    here are only steps that its vector units take. ``values`` are overwritten.

    Returns:
        R×W int64, of several largest values the first; and R×W bool. Where the second is not
        so, the first is only one of those within the margin.
    """
    count = values.shape[1]
    index = torch.arange(count, dtype=values.dtype, device=values.device)[:, None]
    near = values.sub_(values.amax(1, keepdim=True) - margin).sign_()  # 1 or 0; -1 elsewhere
    alone = near.sum(1) <= 2 - count
    best = near.mul_(count).sub_(index).amax(1)  # the first of the near ones
    return best.neg_().long().remainder_(count), alone
