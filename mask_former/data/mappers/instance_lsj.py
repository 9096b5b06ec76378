"""The mapper ``coco_instance_lsj``: instances with large-scale jitter, as in Mask2Former."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from mask_former.registries import DATASET_MAPPER_REGISTRY

from .base import lsj_settings
from .instance import MaskFormerInstanceDatasetMapper

__all__ = ["COCOInstanceLSJDatasetMapper"]


@DATASET_MAPPER_REGISTRY.register(name="coco_instance_lsj")
class COCOInstanceLSJDatasetMapper(MaskFormerInstanceDatasetMapper):
    """COCO instances with large-scale jitter (Mask2Former, section 4.1).

    Unlike ``mask_former_instance``, it drops objects outside the crop. One that only touches the
    crop, but covers no pixel centre, stays an empty target.
    """

    drops_outside = True

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, with large-scale jitter."""
        return lsj_settings(cfg, is_train)
