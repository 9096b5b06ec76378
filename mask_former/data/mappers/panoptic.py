"""The mapper ``mask_former_panoptic``: one target per segment of a COCO panoptic annotation."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.registries import DATASET_MAPPER_REGISTRY

from ..formats.readers import check_classes, check_same_size, read_segment_map
from ..targets import SegmentMap
from .base import Annotations, TrainingMapper
from .semantic import read_sem_seg

__all__ = ["MaskFormerPanopticDatasetMapper"]


@DATASET_MAPPER_REGISTRY.register(name="mask_former_panoptic")
class MaskFormerPanopticDatasetMapper(TrainingMapper):
    """Mapper with one target per segment of a panoptic PNG that is not a crowd.

    The dict names the PNG, ``pan_seg_file_name``, and its ``segments_info``. The label map, which
    the crop needs, is read from ``sem_seg_file_name`` if the dict has it, else made from segments.
    """

    def read_annotations(self, dataset_dict: dict[str, Any], image: NDArray[Any]) -> Annotations:
        """Read the segments; see ``TrainingMapper.read_annotations``."""
        self.require(dataset_dict, "pan_seg_file_name", "segments_info")
        file_name, infos = dataset_dict["pan_seg_file_name"], dataset_dict["segments_info"]
        classes = np.array([info["category_id"] for info in infos], dtype=np.int64)
        if self.num_classes is not None:
            check_classes(
                classes,
                self.num_classes,
                f"'segments_info' of {file_name}",
                hint="Its category_id must be the contiguous class id: does the dataset's loader "
                "map the ids of the JSON to it?",
            )
        index_map = read_segment_map(file_name, [info["id"] for info in infos])
        check_same_size(image, dataset_dict["file_name"], index_map, file_name)
        indices = np.array(
            [i for i, info in enumerate(infos, start=1) if not info.get("iscrowd", 0)],
            dtype=np.int64,
        )
        segments = SegmentMap(index_map, indices, classes[indices - 1], void=0)
        return Annotations(segments, self._sem_seg(dataset_dict, image, index_map, classes))

    def _sem_seg(
        self,
        dataset_dict: dict[str, Any],
        image: NDArray[Any],
        index_map: NDArray[Any],
        classes: NDArray[Any],
    ) -> NDArray[Any] | None:
        if self.ignore_label is None:
            return None
        if "sem_seg_file_name" in dataset_dict:
            return read_sem_seg(dataset_dict, image, self.ignore_label, self.num_classes)
        label_of = np.array([self.ignore_label, *classes])
        return label_of.astype(np.min_scalar_type(label_of.max())).take(index_map)
