"""Graphs that run without this package: ``torch.export``, ONNX and TorchScript.

:func:`~.graphs.graphs_of` converts a model to graphs, :mod:`~.formats` writes and reads them,
:mod:`~.verification` compares them with the model, and :mod:`~.description` describes them.
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
