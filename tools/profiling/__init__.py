"""Time and memory of a model's stages, beside other versions of it, in turns."""

from __future__ import annotations

from .measuring import Spec, build_contenders, measure, measure_data, measure_memory
from .stopwatch import matrix_product_rate, peak_memory
from .textbook import TextbookCriterion
from .work import Work

__all__ = [
    "Spec",
    "TextbookCriterion",
    "Work",
    "build_contenders",
    "matrix_product_rate",
    "measure",
    "measure_data",
    "measure_memory",
    "peak_memory",
]
