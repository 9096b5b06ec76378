"""Dynamic sizes of exported graphs (``torch.export``).

Reference: the size as a symbolic expression. Fast: :func:`plain_size`, which replaces the
expression by a plain symbol, because the exporter takes minutes to simplify products of them.

Saves: the export of a Swin with dynamic sizes takes seconds; without this, it does not finish.
"""

# Example: an image of height s (a symbol) has (s // 4 + 6) // 7 windows of 7 tokens along its
# height, so B·nW·N is an expression of several // and ×. Counting the elements of
# torch.ones((s // 4 + 6) // 7) at run time gives a new symbol u instead, and B·nW·N is a product of
# plain symbols.

from __future__ import annotations

import torch

__all__ = ["plain_size"]


def plain_size(size: int) -> int:
    """Return a plain symbol, at least 1, for a symbolic expression, and an int unchanged."""
    if not isinstance(size, torch.SymInt):
        return size
    counted = torch.ones(size).nonzero().shape[0]
    torch._check(counted >= 1)
    return counted
