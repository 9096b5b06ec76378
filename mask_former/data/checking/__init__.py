"""Is a dataset what it should be: by file, and as a whole. `tools/check_dataset.py` asks."""

from mask_former.data.checking.images import ClassTable, Finding, ImageCheck, Record, check_image
from mask_former.data.checking.sources import (
    Source,
    classes_of_dataset,
    from_coco_json,
    from_folders,
    from_registered,
)
from mask_former.data.checking.summary import Summary, fitting_config, summarize

__all__ = [
    "ClassTable",
    "Finding",
    "ImageCheck",
    "Record",
    "Source",
    "Summary",
    "check_image",
    "classes_of_dataset",
    "fitting_config",
    "from_coco_json",
    "from_folders",
    "from_registered",
    "summarize",
]
