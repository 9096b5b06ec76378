"""Attention inside windows (Swin, arXiv 2103.14030).

All three functions compute ``softmax(scale · q·kᵀ + bias + mask) · v`` of each window, with dropout
on the weights.
Reference: :func:`attend_reference`. Fast: :func:`attend_batched` on a CPU, :func:`attend_fused` on
a GPU.

Saves: :func:`attend_batched` adds the mask to the few windows at the edges instead of all, and
starts the product from the bias. On a CPU, fused attention is slower than both for windows of 49
tokens (docs/performance.md, "Window attention").
"""

# Example: 2 images of 9 windows each; after the roll, the 5 windows at the bottom and on the right
# hold tokens from opposite sides of the map. attend_reference adds an 18×1×N×N mask to the logits
# of all 18 windows. In a WindowLayout these 5 come last in each image: attend_batched adds the
# 5×1×N×N edge mask to windows 4 … 8 and 13 … 17 only.

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .open_layout import OpenLayout
from .window_layout import PlainLayout, WindowLayout

__all__ = ["attend_batched", "attend_fused", "attend_reference"]


def attend_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    layout: PlainLayout | OpenLayout | WindowLayout,
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Compute attention by the formula, step by step.

    Args:
        query, key, value: (B·nW)×heads×N×D, sorted by window.
        bias: 1×heads×N×N, by the relative position of two tokens in a window.
        layout: source of the mask.
        scale: factor of the products of queries and keys.
        dropout: probability of dropping an attention weight.

    Returns:
        (B·nW)×heads×N×D.
    """
    logits = scale * query @ key.transpose(2, 3) + bias
    if layout.mask is not None:
        logits = logits + layout.mask
    weights = logits.softmax(-1)
    return (F.dropout(weights, dropout) if dropout else weights) @ value


def attend_batched(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Compute attention by two batched products; see :func:`attend_reference`."""
    shape = query.shape
    query, key, value = query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1)
    start = bias.expand(shape[0], -1, -1, -1).reshape(-1, *bias.shape[-2:])
    logits = torch.baddbmm(start, query, key.transpose(1, 2), alpha=scale)
    edges = len(layout.edge_mask)
    if edges:
        by_window = logits.view(-1, layout.windows, *bias.shape[1:])
        by_window[:, -edges:] += layout.edge_mask
    weights = logits.softmax(-1)
    return torch.bmm(F.dropout(weights, dropout) if dropout else weights, value).view(shape)


def attend_fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    layout: WindowLayout,
    *,
    scale: float,
    dropout: float,
) -> Tensor:
    """Compute attention by torch's fused kernel; see :func:`attend_reference`."""
    if layout.mask is not None:
        bias = bias + layout.mask.to(bias.dtype)
    bias = bias.expand(len(query), -1, -1, -1)
    return F.scaled_dot_product_attention(query, key, value, bias, dropout, scale=scale)
