"""The mapper ``mask_former_semantic``: one target per class of a label map."""

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
    """Mapper with one target per class of ``sem_seg_file_name`` that augmentation keeps."""

    keeps_empty_masks = False

    def read_annotations(self, dataset_dict: dict[str, Any], image: NDArray[Any]) -> Annotations:
        """Read the label map; see ``TrainingMapper.read_annotations``."""
        self.require(dataset_dict, "sem_seg_file_name")
        if self.ignore_label is None:
            raise ValueError(
                f"{type(self).__name__} needs an ignore_label, found None: pass the dataset's own."
            )
        sem_seg = read_sem_seg(dataset_dict, image, self.ignore_label, self.num_classes)
        # All classes are targets: absent ones are dropped together with those outside the crop.
        known = np.arange(np.iinfo(sem_seg.dtype).max + 1)[: self.num_classes]
        classes = known[known != self.ignore_label]
        return Annotations(SegmentMap(sem_seg, classes, classes, self.ignore_label), sem_seg)


def read_sem_seg(
    dataset_dict: dict[str, Any], image: NDArray[Any], ignore_label: int, num_classes: int | None
) -> NDArray[Any]:
    """Read and check the label map of an image.

    Args:
        dataset_dict: has ``sem_seg_file_name`` and optionally ``label_map``.
        image: H×W×3.
        ignore_label: label of pixels without a class.
        num_classes: K, to check labels against; None: do not check them.

    Returns:
        H×W, uint8 or uint16.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the file is damaged, its size differs from the image's, or a label is out of
            0 … K-1 and not the ignore label.
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
