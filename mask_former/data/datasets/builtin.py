"""Metadata that Mask2Former adds to datasets which detectron2 registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detectron2.data import MetadataCatalog

from .table import Table

__all__ = ["extend_builtin_metadata"]

_SPLITS = ("train", "val")


def extend_builtin_metadata(tables: Mapping[str, Table]) -> None:
    """Extend the metadata of detectron2's COCO panoptic and ADE20K semantic datasets.

    ``coco_2017_*_panoptic`` list only the things in ``thing_classes`` and ``thing_colors``;
    ``ade20k_sem_seg_*`` get ``stuff_colors``. Repeated calls have no further effect.

    Args:
        tables: the package's tables by name.
    """
    things = [c for c in tables["coco_panoptic"].categories if c.isthing]
    coco = {"thing_classes": [c.name for c in things], "thing_colors": [c.color for c in things]}
    ade20k = {"stuff_colors": [c.color for c in tables["ade20k_panoptic"].categories]}
    for split in _SPLITS:
        _replace(f"coco_2017_{split}_panoptic", coco)
        _replace(f"ade20k_sem_seg_{split}", ade20k)


def _replace(name: str, values: dict[str, Any]) -> None:
    """Set values of a dataset's metadata, which by itself refuses to change any."""
    old = MetadataCatalog.get(name).as_dict()
    if old.items() >= values.items():
        return
    MetadataCatalog.remove(name)
    MetadataCatalog.get(name).set(**old | values)
