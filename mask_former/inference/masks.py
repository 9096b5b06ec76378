"""Mask logits from which results are computed: their types, resizing and precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mask_former.ops import LazyMasks, WholeMasks
from mask_former.structures import Size

__all__ = ["Masks", "resize_masks", "without_autocast"]

Masks = Tensor | LazyMasks | WholeMasks
"""Q×h×w mask logits."""
P = ParamSpec("P")
R = TypeVar("R")


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a function of ``mask_cls`` to run without a caller's ``torch.autocast``."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        mask_cls = args[0] if args else kwargs["mask_cls"]
        assert isinstance(mask_cls, Tensor)
        with torch.autocast(mask_cls.device.type, enabled=False):
            return function(*args, **kwargs)

    return wrapped


def resize_masks(masks: Tensor, size: Size | None) -> Tensor:
    """Resize Q×h×w to Q×H×W (bilinear); ``None`` keeps the size."""
    if size is None or tuple(masks.shape[-2:]) == tuple(size):
        return masks
    if not len(masks):  # F.interpolate rejects an empty batch
        return masks.new_zeros((0, *size))
    return F.interpolate(masks[None], size=size, mode="bilinear", align_corners=False)[0]
