"""Sizes that a graph leaves open (``torch.export``).

Reference: the size as it is. Fast: :func:`plain_size`, which hides from the exporter what a size
was computed from, because it simplifies products of such expressions for minutes.

Saves: the export of a Swin with open sizes takes seconds instead of not ending.
"""

# Example: an image of height s (a symbol) has (s // 4 + 6) // 7 windows of 7 tokens along its
# height. A B·W·N of these is an expression of several // and ×. Counting the elements of
# torch.ones((s // 4 + 6) // 7) at run time gives a new symbol u, and B·W·N is a product of plain
# symbols.

from __future__ import annotations

import torch

__all__ = ["plain_size"]


def plain_size(size: int) -> int:
    """Return a number as it is, and one plain symbol, at least 1, for a symbolic expression."""
    if not isinstance(size, torch.SymInt):
        return size
    counted = torch.ones(size).nonzero().shape[0]
    torch._check(counted >= 1)
    return counted
