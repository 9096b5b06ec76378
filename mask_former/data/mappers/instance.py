"""The mapper ``mask_former_instance``: one target per object of a COCO instance annotation."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from mask_former.registries import DATASET_MAPPER_REGISTRY

from ..formats.coco_instances import decode_segmentation, read_shape
from ..formats.readers import check_classes
from ..instances import InstanceShapes, Shape
from ..transforms.augmentation import build_augmentation
from .base import Annotations, TrainingMapper, settings

__all__ = ["MaskFormerInstanceDatasetMapper"]


@DATASET_MAPPER_REGISTRY.register(name="mask_former_instance")
class MaskFormerInstanceDatasetMapper(TrainingMapper):
    """Mapper with one target per entry of ``annotations`` that is not a crowd.

    Its segmentation is a list of polygons, an RLE or an array. Masks may overlap, and no label map
    is made. Objects that cover no pixel, because they lie outside the crop or are smaller than a
    pixel, are empty targets (published); with ``INPUT.MIN_MASK_AREA`` 1 they are dropped.
    """

    drops_outside = False
    """Drop objects outside the crop, even with ``INPUT.MIN_MASK_AREA`` 0."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, with MaskFormer's augmentation and padding.

        Raises:
            ValueError: if the crop limits the area of a category, for which a label map is needed.
        """
        crop = cfg.INPUT.CROP
        if crop.ENABLED and crop.SINGLE_CATEGORY_MAX_AREA < 1:
            raise ValueError(
                f"INPUT.CROP.SINGLE_CATEGORY_MAX_AREA is {crop.SINGLE_CATEGORY_MAX_AREA}, which "
                "needs the class of each pixel, but mask_former_instance reads no label map. Set "
                "it to 1.0."
            )
        return settings(cfg, is_train) | {
            "augmentations": build_augmentation(cfg, ignore_label=None),
            "ignore_label": None,
            "size_divisibility": cfg.INPUT.SIZE_DIVISIBILITY,
        }

    def read_annotations(self, dataset_dict: dict[str, Any], image: NDArray[Any]) -> Annotations:
        """Read the masks; see ``TrainingMapper.read_annotations``."""
        self.require(dataset_dict, "annotations")
        size = (image.shape[0], image.shape[1])
        crowd = np.zeros(size, dtype=np.uint8)
        shapes: list[Shape] = []
        labels: list[int] = []
        for number, annotation in enumerate(dataset_dict["annotations"]):
            name = f"id {annotation['id']!r}" if "id" in annotation else f"number {number}"
            where = f"{dataset_dict['file_name']}: its annotation {name}"
            segmentation = annotation.get("segmentation")
            if annotation.get("iscrowd", 0):
                crowd |= decode_segmentation(segmentation, size, where)
                continue
            self._check_class(annotation["category_id"], where)
            shapes.append(read_shape(segmentation, size, where))
            labels.append(annotation["category_id"])
        kept = np.array(labels, dtype=np.int64)
        return Annotations(InstanceShapes(shapes, kept, crowd, self.drops_outside), None)

    def _check_class(self, label: int, where: str) -> None:
        if self.num_classes is not None:
            hint = (
                "The category_id must be the contiguous class id: does the dataset's loader map "
                "the ids of the JSON to it?"
            )
            check_classes([label], self.num_classes, where, hint)
