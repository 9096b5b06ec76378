"""A custom training mapper: the panoptic mapper with one more augmentation, and a key for it.

Put it into mask_former/data/mappers/, or anywhere else and pass ``--plugin
brightness_mapper.py``.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.data import transforms as T

from mask_former.data.mappers import MaskFormerPanopticDatasetMapper
from mask_former.registries import DATASET_MAPPER_REGISTRY


def add_config(cfg: CfgNode) -> None:
    """Add the key ``INPUT.BRIGHTNESS``."""
    cfg.INPUT.BRIGHTNESS = [0.8, 1.2]  # range of the factor that multiplies pixel values


@DATASET_MAPPER_REGISTRY.register(name="bright_panoptic")
class BrightPanopticMapper(MaskFormerPanopticDatasetMapper):
    """A mapper is called with a dataset dict; ``from_config`` chooses its augmentations."""

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        arguments = super().from_config(cfg, is_train)
        brightness = T.RandomBrightness(*cfg.INPUT.BRIGHTNESS)
        return {**arguments, "augmentations": [*arguments["augmentations"], brightness]}
