"""Building blocks of the transformer, which depend on torch and our kernels only."""

from .attention import Attention
from .deformable_transformer import DeformableTransformer
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
    "DeformableTransformer",
    "FeedForward",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "position_of_cells",
    "sine_position_encoding",
]
