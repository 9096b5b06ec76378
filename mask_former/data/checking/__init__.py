"""Validation of a dataset, file by file and as a whole, for ``tools/check_dataset.py``."""

from .images import ClassTable, Finding, ImageCheck, check_image
from .sources import (
    Source,
    classes_of_dataset,
    evenly_spaced,
    from_coco_json,
    from_folders,
    from_registered,
)
from .summary import Summary, fitting_config, summarize

__all__ = [
    "ClassTable",
    "Finding",
    "ImageCheck",
    "Source",
    "Summary",
    "check_image",
    "classes_of_dataset",
    "evenly_spaced",
    "fitting_config",
    "from_coco_json",
    "from_folders",
    "from_registered",
    "summarize",
]
