"""The training augmentations of MaskFormer, DETR, Mask2Former and EoMT, built from detectron2's.

The random draws are detectron2's, from the same generators in the same order, but flips and colour
jitter need fewer passes over the pixels. The seeds of numpy and of ``random``, from which the
colour jitter draws, determine an example.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

from .color_jitter import ColorAugSSD, ColorAugTorchvision
from .crops import ClassUniformCrop, FixedSizeCrop, ResizeAndCrop

__all__ = [
    "ResizeScaleFloor",
    "build_augmentation",
    "build_detr_augmentation",
    "build_lsj_augmentation",
]

DETR_PRE_CROP_SIZES = (400, 500, 600)
"""The shortest edges in pixels to which DETR resizes images before cropping."""


class HFlipTransform(T.HFlipTransform):
    """detectron2's flip, but with a contiguous result; copying detectron2's view is slower."""

    def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
        """Mirror an image, H×W or H×W×3, 8 or 16 bits, left to right."""
        return cv2.flip(img, 1)


class RandomFlip(T.RandomFlip):
    """detectron2's augmentation, which returns the ``HFlipTransform`` above instead of its own."""

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Draw whether an image, H×W×3, is flipped."""
        transform = super().get_transform(image)
        is_horizontal = isinstance(transform, T.HFlipTransform)
        return HFlipTransform(transform.width) if is_horizontal else transform


def build_augmentation(cfg: CfgNode, ignore_label: int | None) -> list[T.Augmentation]:
    """Build MaskFormer's augmentation: resize, crop with an area limit, colour jitter, flip.

    Args:
        cfg: ``mask_former.config.keys`` explains the keys in ``INPUT``.
        ignore_label: the label that the crop's limit on a category's area ignores; None: there is
            no such label.

    Raises:
        ValueError: if a key of ``INPUT`` has an unknown value.
    """
    crop = None
    if cfg.INPUT.CROP.ENABLED:
        crop = T.RandomCrop_CategoryAreaConstraint(
            *_crop_window(cfg), cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA, ignore_label
        )
        if cfg.INPUT.CROP.CLASS_UNIFORM:
            crop = ClassUniformCrop(crop, cfg.INPUT.CROP.CLASS_UNIFORM, ignore_label)
    augmentations: list[T.Augmentation] = [ResizeAndCrop(_resize(cfg), crop)]
    if cfg.INPUT.COLOR_AUG_SSD:
        augmentations.append(ColorAugSSD(img_format=cfg.INPUT.FORMAT))
    return augmentations + _flip(cfg)


def build_detr_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Build DETR's augmentation.

    It flips; with a probability of one half it resizes the shortest edge to 400, 500 or 600 pixels
    and crops; then it resizes.

    Args:
        cfg: ``mask_former.config.keys`` explains the keys in ``INPUT``.

    Raises:
        ValueError: if a key of ``INPUT`` has an unknown value.
    """
    augmentations = _flip(cfg)
    if cfg.INPUT.CROP.ENABLED:
        first = T.ResizeShortestEdge(DETR_PRE_CROP_SIZES, sample_style="choice")
        crop = T.RandomCrop(*_crop_window(cfg))
        augmentations.append(T.RandomApply(ResizeAndCrop(first, crop), prob=0.5))
    return [*augmentations, ResizeAndCrop(_resize(cfg))]


class ResizeScaleFloor(T.ResizeScale):
    """detectron2's random scale, but sizes are rounded down, as torchvision does."""

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Draw the new size of an image H×W×3."""
        h, w = image.shape[:2]
        scale = np.random.uniform(self.min_scale, self.max_scale)
        factor = min(self.target_height / h, self.target_width / w) * scale
        return T.ResizeTransform(h, w, int(h * factor), int(w * factor))


def build_lsj_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Build large-scale jitter (Ghiasi et al., 2021, *Simple Copy-Paste*, section 3).

    It jitters colours if COLOR_AUG_SSD is set, flips, scales the image to fit into a square of
    MIN_SCALE to MAX_SCALE times IMAGE_SIZE, and crops it to at most IMAGE_SIZE. Mappers pad smaller
    images to IMAGE_SIZE.

    Args:
        cfg: ``mask_former.config.keys`` explains the keys in ``INPUT``.

    Raises:
        ValueError: if a key of ``INPUT`` has an invalid value.
    """
    side, low, high = cfg.INPUT.IMAGE_SIZE, cfg.INPUT.MIN_SCALE, cfg.INPUT.MAX_SCALE
    if side < 1 or not 0 < low <= high < float("inf"):
        raise ValueError(
            f"INPUT.IMAGE_SIZE is {side}, INPUT.MIN_SCALE {low} and INPUT.MAX_SCALE {high}: "
            "expected a side of at least 1 pixel, and factors with 0 < MIN_SCALE <= MAX_SCALE."
        )
    color, scale, crop = _LSJ_RULES[_one_of(cfg.INPUT.LSJ_RULE, "LSJ_RULE", tuple(_LSJ_RULES))]
    keys = "INPUT.IMAGE_SIZE and INPUT.MIN_SCALE"
    resize_and_crop = ResizeAndCrop(scale(low, high, side, side), crop((side, side)), keys)
    colors = [color(img_format=cfg.INPUT.FORMAT)] if cfg.INPUT.COLOR_AUG_SSD else []
    return [*colors, *_flip(cfg), resize_and_crop]


_LSJ_RULES: dict[str, tuple[Callable[..., Any], ...]] = {
    "detectron2": (ColorAugSSD, T.ResizeScale, FixedSizeCrop),
    "torchvision": (ColorAugTorchvision, ResizeScaleFloor, partial(T.RandomCrop, "absolute")),
}
"""Colour jitter, scaling and crop of each ``INPUT.LSJ_RULE``."""


def _resize(cfg: CfgNode) -> T.ResizeShortestEdge:
    sampling = _one_of(cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, "MIN_SIZE_TRAIN_SAMPLING", _SAMPLINGS)
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if sampling == "range" and len(sizes) != 2:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)}: with INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' "
            "expected two values, the minimum and the maximum of the shorter side."
        )
    return T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TRAIN, sampling)


def _crop_window(cfg: CfgNode) -> tuple[str, Any]:
    return _one_of(cfg.INPUT.CROP.TYPE, "CROP.TYPE", _CROPS), cfg.INPUT.CROP.SIZE


def _flip(cfg: CfgNode) -> list[T.Augmentation]:
    direction = _one_of(cfg.INPUT.RANDOM_FLIP, "RANDOM_FLIP", _FLIPS)
    if direction == "none":
        return []
    return [RandomFlip(horizontal=direction == "horizontal", vertical=direction == "vertical")]


_SAMPLINGS = ("choice", "range")
_CROPS = ("absolute", "absolute_range", "relative", "relative_range")
_FLIPS = ("horizontal", "vertical", "none")


def _one_of(value: str, key: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"INPUT.{key} is {value!r}, expected one of {known}.")
    return value
