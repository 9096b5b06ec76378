"""Building blocks of the transformer, and masks resized by the row: torch only."""

from .largest import largest
from .lazy_masks import LazyMasks
from .mlp import MLP
from .position_encoding import sine_position_encoding
from .transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "MLP",
    "LazyMasks",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "largest",
    "sine_position_encoding",
]
