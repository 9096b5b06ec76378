"""The mapper ``mask_former_semantic_lsj``: one target per class, with large-scale jitter."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode

from mask_former.registries import DATASET_MAPPER_REGISTRY

from .base import ignore_label_of, lsj_settings
from .semantic import MaskFormerSemanticDatasetMapper

__all__ = ["MaskFormerSemanticLSJDatasetMapper"]


@DATASET_MAPPER_REGISTRY.register(name="mask_former_semantic_lsj")
class MaskFormerSemanticLSJDatasetMapper(MaskFormerSemanticDatasetMapper):
    """Semantic targets with large-scale jitter, as in EoMT."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """Return the arguments of ``__init__``, with large-scale jitter."""
        ignore_label = ignore_label_of(cfg.DATASETS.TRAIN)
        return lsj_settings(cfg, is_train) | {"ignore_label": ignore_label}
