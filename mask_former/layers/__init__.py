"""Building blocks of the transformer, which depend on torch and our kernels only."""

from .deformable_transformer import DeformableTransformer
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
    "DeformableTransformer",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "sine_position_encoding",
]
