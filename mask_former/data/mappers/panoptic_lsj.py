"""The mapper ``coco_panoptic_lsj``: panoptic targets with large-scale jitter, as in Mask2Former."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from mask_former.registries import DATASET_MAPPER_REGISTRY

from .base import lsj_settings
from .panoptic import MaskFormerPanopticDatasetMapper

__all__ = ["COCOPanopticLSJDatasetMapper"]


@DATASET_MAPPER_REGISTRY.register(name="coco_panoptic_lsj")
class COCOPanopticLSJDatasetMapper(MaskFormerPanopticDatasetMapper):
    """Panoptic targets with large-scale jitter (Mask2Former, section 4.1).

    Unlike ``mask_former_panoptic``, it makes no label maps. Segments outside the crop are empty
    targets.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, with large-scale jitter."""
        return lsj_settings(cfg, is_train)
