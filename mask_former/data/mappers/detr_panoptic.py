"""The mapper ``detr_panoptic``: panoptic targets with DETR's augmentation, for COCO."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from mask_former.registries import DATASET_MAPPER_REGISTRY

from ..transforms.augmentation import build_detr_augmentation
from .base import settings
from .panoptic import MaskFormerPanopticDatasetMapper

__all__ = ["DETRPanopticDatasetMapper"]


@DATASET_MAPPER_REGISTRY.register(name="detr_panoptic")
class DETRPanopticDatasetMapper(MaskFormerPanopticDatasetMapper):
    """Panoptic targets with DETR's augmentation (Carion et al., 2020).

    Unlike ``mask_former_panoptic``, it neither pads images nor makes label maps.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, with DETR's augmentation."""
        return settings(cfg, is_train) | {
            "augmentations": build_detr_augmentation(cfg),
            "ignore_label": None,
        }
