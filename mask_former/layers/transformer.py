"""DETR's transformer (arXiv 2005.12872), batch first.

Submodules are named as in torch, because the published weights are: ``self_attn.in_proj_weight``,
``multihead_attn``, ``linear1``, ``norm1`` …
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention
from .position_encoding import position_of_cells

__all__ = [
    "FeedForward",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
]


class FeedForward(nn.Module):
    """Base of the transformer layers: the feed-forward network at the end, and the dropout."""

    def __init__(self, dim: int, feedforward_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def feed_forward(self, x: Tensor) -> Tensor:
        """Map ``… × dim`` to ``… × dim``."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class TransformerEncoderLayer(FeedForward):
    """Self-attention and feed-forward over the cells of a feature map."""

    def __init__(
        self, dim: int, heads: int, feedforward_dim: int, dropout: float, pre_norm: bool
    ) -> None:
        """Create the layer; ``pre_norm`` normalises the input of each block, not its output."""
        super().__init__(dim, feedforward_dim, dropout)
        self.self_attn = Attention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Encode ``x`` B×S×C; ``position`` 1×S×C is added to queries and keys, not to values."""
        if self.pre_norm:
            normed = self.norm1(x)
            with_position = normed + position
            x = x + self.dropout(self.self_attn(with_position, with_position, normed))
            return x + self.dropout(self.feed_forward(self.norm2(x)))
        with_position = x + position
        x = self.norm1(x + self.dropout(self.self_attn(with_position, with_position, x)))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class TransformerDecoderLayer(FeedForward):
    """Self-attention among the queries, cross-attention to the feature map, and feed-forward."""

    def __init__(
        self, dim: int, heads: int, feedforward_dim: int, dropout: float, pre_norm: bool
    ) -> None:
        super().__init__(dim, feedforward_dim, dropout)
        self.self_attn = Attention(dim, heads, dropout)
        self.multihead_attn = Attention(dim, heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, query_position: Tensor, keys: Tensor, memory: Tensor) -> Tensor:
        """Run one layer. Returns B×Q×C.

        Args:
            x: B×Q×C, content of the queries.
            query_position: 1×Q×C, added to queries and keys of the self-attention and to the
                queries of the cross-attention.
            keys: B×S×C, the flattened map plus its positional encoding.
            memory: B×S×C, the flattened map: the values.
        """
        if self.pre_norm:
            normed = self.norm1(x)
            with_position = normed + query_position
            x = x + self.dropout(self.self_attn(with_position, with_position, normed))
            query = self.norm2(x) + query_position
            x = x + self.dropout(self.multihead_attn(query, keys, memory))
            return x + self.dropout(self.feed_forward(self.norm3(x)))
        with_position = x + query_position
        x = self.norm1(x + self.dropout(self.self_attn(with_position, with_position, x)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + query_position, keys, memory)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class _LayerStack(nn.Module):
    """A sequence of layers of one type, followed by a norm or an identity."""

    layer_type: type[nn.Module]

    def __init__(
        self,
        num_layers: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            self.layer_type(dim, heads, feedforward_dim, dropout, pre_norm)
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if self._ends_in_norm(pre_norm) else nn.Identity()

    @staticmethod
    def _ends_in_norm(pre_norm: bool) -> bool:
        raise NotImplementedError


class TransformerEncoder(_LayerStack):
    """A stack of encoder layers; with ``pre_norm`` it ends in a norm.

    As in DETR, that norm exists even with 0 layers, so that DETR's weights fit.
    """

    layer_type = TransformerEncoderLayer

    @staticmethod
    def _ends_in_norm(pre_norm: bool) -> bool:
        return pre_norm

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Encode ``x`` B×S×C, with positional encoding ``position`` 1×S×C. Returns B×S×C."""
        for layer in self.layers:
            x = layer(x, position)
        return self.norm(x)


class TransformerDecoder(_LayerStack):
    """A stack of decoder layers; one final norm is applied to every layer's output."""

    layer_type = TransformerDecoderLayer

    @staticmethod
    def _ends_in_norm(pre_norm: bool) -> bool:
        return True

    def forward(self, query_position: Tensor, memory: Tensor, position: Tensor) -> Tensor:
        """Decode the queries, whose content starts at 0.

        Args:
            query_position: Q×C, learned.
            memory: B×S×C, the flattened map.
            position: 1×S×C, its positional encoding.

        Returns:
            L×B×Q×C, normalised states of the queries after each layer.
        """
        keys = memory + position
        query_position = query_position[None]
        x = query_position.new_zeros(memory.shape[0], *query_position.shape[1:])
        states = []
        for layer in self.layers:
            x = layer(x, query_position, keys, memory)
            states.append(self.norm(x))
        return torch.stack(states)


class Transformer(nn.Module):
    """DETR's encoder and decoder; with ``decoder_layers=0`` only the encoder."""

    def __init__(
        self,
        *,
        encoder_layers: int,
        decoder_layers: int,
        dim: int,
        heads: int,
        feedforward_dim: int,
        dropout: float,
        pre_norm: bool,
    ) -> None:
        """Create the layers; ``dim`` is their width in channels, ``dropout`` a probability.

        Raises:
            ValueError: if ``dim`` is not a multiple of ``heads``.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"A transformer of width {dim} cannot be split into {heads} heads; change "
                "MODEL.MASK_FORMER.HIDDEN_DIM (or MODEL.SEM_SEG_HEAD.CONVS_DIM) or NHEADS."
            )
        arguments = (dim, heads, feedforward_dim, dropout, pre_norm)
        self.encoder = TransformerEncoder(encoder_layers, *arguments)
        self.decoder = TransformerDecoder(decoder_layers, *arguments) if decoder_layers else None
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def encode(self, feature_map: Tensor) -> Tensor:
        """Encode a feature map B×C×h×w. Returns a map of the same shape."""
        return self._encode(feature_map)[0].transpose(1, 2).reshape(feature_map.shape)

    def _encode(self, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Encode a map B×C×h×w. Returns its cells B×hw×C and the positional encoding 1×hw×C."""
        position = position_of_cells(feature_map)
        return self.encoder(feature_map.flatten(2).transpose(1, 2), position), position

    def forward(self, feature_map: Tensor, query_position: Tensor) -> Tensor:
        """Decode the learned queries Q×C against a map B×C×h×w. Returns L×B×Q×C."""
        assert self.decoder is not None, "this transformer was built without a decoder"
        memory, position = self._encode(feature_map)
        return self.decoder(query_position, memory, position)
