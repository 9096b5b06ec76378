"""Sizes that a graph leaves open (``torch.export``)."""

from __future__ import annotations

import torch

__all__ = ["plain_size"]


def plain_size(size: int) -> int:
    """A number; where it is a symbolic expression, one plain symbol for it.

    The exporter simplifies products of expressions such as (s // 4 + 6) // 7 for minutes. Counting
    them at run time hides what they are made of. It is at least 1.
    """
    if not isinstance(size, torch.SymInt):
        return size
    counted = torch.ones(size).nonzero().shape[0]
    torch._check(counted >= 1)
    return counted
