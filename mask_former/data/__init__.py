"""Datasets, augmentation and dataset mappers, and a user's own data by `register_*`."""

from mask_former.data import mappers  # noqa: F401  (first: the loaders use the mappers' readers)
from mask_former.data.custom import register_instances, register_panoptic, register_semantic

__all__ = ["register_instances", "register_panoptic", "register_semantic"]
