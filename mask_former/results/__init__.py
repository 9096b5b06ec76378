"""Results of images as arrays, as drawings, and as files for other programs."""

from __future__ import annotations

from mask_former.data.datasets.classes import Classes
from mask_former.utils.colors import PALETTES

from .arrays import InstanceResult, PanopticResult, ResultArrays
from .conversion import from_detectron2
from .files import FORMATS
from .image_result import Result
from .loading import load_npz
from .writer import ResultWriter, merge_records

__all__ = [
    "FORMATS",
    "PALETTES",
    "Classes",
    "InstanceResult",
    "PanopticResult",
    "Result",
    "ResultArrays",
    "ResultWriter",
    "from_detectron2",
    "load_npz",
    "merge_records",
]
