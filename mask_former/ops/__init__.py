"""Kernels without parameters; each has a plain reference version and a fast one."""

from .argmax import largest
from .lazy_masks import LazyMasks

__all__ = ["LazyMasks", "largest"]
