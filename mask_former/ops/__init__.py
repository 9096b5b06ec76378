"""Kernels without parameters; each has a plain reference version and a fast one."""

from .argmax import argmax_with_margin
from .attended_cells import attended_cells, level_features
from .best_class import best_class
from .lazy_masks import LazyMasks, WholeMasks, as_masks
from .reference import is_reference, reference_ops

__all__ = [
    "LazyMasks",
    "WholeMasks",
    "argmax_with_margin",
    "as_masks",
    "attended_cells",
    "best_class",
    "is_reference",
    "level_features",
    "reference_ops",
]
