"""Graphs that run without this package: ``torch.export``, ONNX, TorchScript.

:func:`~.graphs.graphs_of` makes of a model what is exported, :mod:`~.formats` writes and reads it,
:mod:`~.verification` compares it with the model, :mod:`~.description` says what a user must know.
"""

from .description import describe
from .formats import FORMATS, Format
from .graphs import LIMIT, STRIDE, graphs_of
from .verification import Parity, Timing, compare, measure

__all__ = [
    "FORMATS",
    "LIMIT",
    "STRIDE",
    "Format",
    "Parity",
    "Timing",
    "compare",
    "describe",
    "graphs_of",
    "measure",
]
