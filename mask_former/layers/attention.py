"""Multi-head attention, optionally restricted to some keys (Mask2Former's masked attention)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Attention"]


class Attention(nn.MultiheadAttention):
    """torch's multi-head attention as plain projections around one fused attention call."""

    def __init__(self, dim: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(dim, heads, dropout=dropout, batch_first=True)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, attended: Tensor | None = None
    ) -> Tensor:
        """Attend from ``query`` B×S×C to ``key`` and ``value`` B×T×C.

        Args:
            query, key, value: inputs of the projections.
            attended: B×1×S×T, bool, the same for all heads: True where a query sees a key. None:
                every query sees every key.

        Returns:
            B×S×C.
        """
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            F.linear(x, weight, bias).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        heads = F.scaled_dot_product_attention(q, k, v, attended, dropout)
        return self.out_proj(heads.transpose(1, 2).flatten(2))
