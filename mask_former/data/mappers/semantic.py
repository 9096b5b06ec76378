"""`mask_former_semantic`: one target a class of a label map."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.registries import DATASET_MAPPER_REGISTRY

from ..formats.readers import check_classes, check_same_size, read_class_map
from ..targets import SegmentMap
from .base import Annotations, TrainingMapper

__all__ = ["MaskFormerSemanticDatasetMapper", "read_sem_seg"]


@DATASET_MAPPER_REGISTRY.register(name="mask_former_semantic")
class MaskFormerSemanticDatasetMapper(TrainingMapper):
    """One target for each class that is present after augmentation, from `sem_seg_file_name`."""

    keeps_empty_masks = False

    def read_annotations(self, dataset_dict: dict[str, Any], image: NDArray[Any]) -> Annotations:
        """See `TrainingMapper.read_annotations`."""
        self.require(dataset_dict, "sem_seg_file_name")
        if self.ignore_label is None:
            raise ValueError(
                f"{type(self).__name__} needs an ignore_label, found None: pass the dataset's."
            )
        sem_seg = read_sem_seg(dataset_dict, image, self.ignore_label, self.num_classes)
        # All that there may be: absent classes are dropped with those that the crop empties.
        known = np.arange(np.iinfo(sem_seg.dtype).max + 1)[: self.num_classes]
        classes = known[known != self.ignore_label]
        return Annotations(SegmentMap(sem_seg, classes, classes, self.ignore_label), sem_seg)


def read_sem_seg(
    dataset_dict: dict[str, Any], image: NDArray[Any], ignore_label: int, num_classes: int | None
) -> NDArray[Any]:
    """Read and check the label map of an H×W×3 `image`.

    Returns:
        H×W, uint8 or uint16.

    Raises:
        FileNotFoundError, ValueError: the file is missing or damaged, its size is not the image's,
            or a label is neither the ignore label nor in 0 … `num_classes`-1.
    """
    file_name = dataset_dict["sem_seg_file_name"]
    labels = read_class_map(file_name, dataset_dict.get("label_map"))
    check_same_size(image, dataset_dict["file_name"], labels, file_name)
    if num_classes is not None:
        outside = (labels >= num_classes) & (labels != ignore_label)
        check_classes(
            np.unique(labels[outside]),
            num_classes,
            file_name,
            hint=f"The ignore label, from the dataset's metadata, is {ignore_label}. Do the labels "
            "start at 1, is another value meant to be ignored, or is it a map of other ids "
            "(colours, instances)?",
        )
    return labels
