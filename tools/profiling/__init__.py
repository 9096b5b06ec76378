"""Interleaved benchmarks: time and memory per stage, compared with other versions of a model."""

from __future__ import annotations

from .measuring import ModelSpec, build_models, measure, measure_data, measure_memory
from .reference import ReferenceCriterion, ReferenceMatcher
from .stopwatch import matrix_product_rate, peak_memory
from .workload import Workload

__all__ = [
    "ModelSpec",
    "ReferenceCriterion",
    "ReferenceMatcher",
    "Workload",
    "build_models",
    "matrix_product_rate",
    "measure",
    "measure_data",
    "measure_memory",
    "peak_memory",
]
