"""Building blocks of the transformer, which depend on torch only."""

from .attention import Attention
from .mlp import MLP
from .position_encoding import position_of_cells, sine_position_encoding
from .transformer import (
    FeedForward,
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "MLP",
    "Attention",
    "FeedForward",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "position_of_cells",
    "sine_position_encoding",
]
