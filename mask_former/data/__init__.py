"""Datasets, augmentations and dataset mappers; ``register_*()`` register custom datasets."""

from . import mappers  # noqa: F401  (first: the loaders use the mappers' readers)
from .datasets.custom import register_instances, register_panoptic, register_semantic

__all__ = ["register_instances", "register_panoptic", "register_semantic"]
