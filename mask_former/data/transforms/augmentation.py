"""The training augmentations of MaskFormer, DETR and Mask2Former, built from detectron2's.

The random draws are detectron2's, from the same generators in the same order, but flips and colour
jitter need fewer passes over the pixels. The seeds of numpy and of ``random``, from which the
colour jitter draws, determine an example.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

from .crops import ClassUniformCrop, FixedSizeCrop, ResizeAndCrop

__all__ = [
    "ColorAugSSD",
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


class ColorAugSSD(T.Augmentation):
    """The colour jitter of SSD (Liu et al., 2016): brightness, contrast, saturation and hue.

    Draws, ranges, order and rounding are those of
    ``detectron2.projects.point_rend.ColorAugSSDTransform``, which draws when it is applied, so that
    one transform returns a different result each time. Here ``get_transform`` draws a fixed
    transform, and each step looks values up in a table of 256 instead of computing in floating
    point.
    """

    def __init__(
        self,
        img_format: str,
        brightness_delta: float = 32,
        contrast_low: float = 0.5,
        contrast_high: float = 1.5,
        saturation_low: float = 0.5,
        saturation_high: float = 1.5,
        hue_delta: int = 18,
    ) -> None:
        """Store the ranges of the draws.

        Args:
            img_format: "RGB" or "BGR".
            brightness_delta: the largest change of the brightness, up or down, in 0 … 255.
            contrast_low, contrast_high: the range of the factor for all channels.
            saturation_low, saturation_high: the range of the factor for the saturation.
            hue_delta: the largest change of the hue, up or down, in units of 2 degrees.
        """
        self._init(locals())

    def get_transform(self, image: NDArray[Any]) -> T.ColorTransform:
        """Draw one jitter; each of the four steps is skipped with a probability of one half."""
        coin = partial(random.randrange, 2)
        tables = [self._brightness()] if coin() else []
        steps: list[Callable[[], NDArray[Any]]] = [self._saturation, self._hue]
        steps.insert(0 if coin() else 2, self._contrast)
        tables += [draw() for draw in steps if coin()]
        return T.ColorTransform(partial(_look_up, tables=tables, img_format=self.img_format))

    def _brightness(self) -> NDArray[Any]:
        return _linear(1, random.uniform(-self.brightness_delta, self.brightness_delta))

    def _contrast(self) -> NDArray[Any]:
        return _linear(random.uniform(self.contrast_low, self.contrast_high))

    def _saturation(self) -> NDArray[Any]:
        factor = random.uniform(self.saturation_low, self.saturation_high)
        return _hsv_table(saturation=_linear(factor))

    def _hue(self) -> NDArray[Any]:
        shift = random.randint(-self.hue_delta, self.hue_delta)
        return _hsv_table(hue=((np.arange(256) + shift) % 180).astype(np.uint8))


def _linear(factor: float, offset: float = 0) -> NDArray[Any]:
    """Return the look-up table of a linear function of 8-bit values: 256 values."""
    values = np.arange(256, dtype=np.float32) * factor + offset
    return np.clip(values, 0, 255).astype(np.uint8)


def _hsv_table(
    hue: NDArray[Any] | None = None, saturation: NDArray[Any] | None = None
) -> NDArray[Any]:
    """Return a look-up table for the three channels of an HSV image: 1×256×3."""
    same = np.arange(256, dtype=np.uint8)
    channels = (same if hue is None else hue, same if saturation is None else saturation, same)
    return np.stack(channels, axis=-1)[None]


def _look_up(image: NDArray[Any], tables: list[NDArray[Any]], img_format: str) -> NDArray[Any]:
    """Apply tables in order: those of 256 values to the image, those of 1×256×3 to its HSV form."""
    is_rgb = img_format == "RGB"
    to_hsv, from_hsv = (
        (cv2.COLOR_RGB2HSV, cv2.COLOR_HSV2RGB) if is_rgb else (cv2.COLOR_BGR2HSV, cv2.COLOR_HSV2BGR)
    )
    for table in tables:
        if table.ndim == 1:
            image = cv2.LUT(image, table)
        else:
            image = cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, to_hsv), table), from_hsv)
    return image


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


def build_lsj_augmentation(cfg: CfgNode) -> list[T.Augmentation]:
    """Build large-scale jitter (Ghiasi et al., 2021, *Simple Copy-Paste*, section 3).

    It flips, scales the image to fit into a square of MIN_SCALE to MAX_SCALE times IMAGE_SIZE, and
    crops it to at most IMAGE_SIZE. Mappers pad smaller images to IMAGE_SIZE.

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
    resize = T.ResizeScale(low, high, side, side)
    keys = "INPUT.IMAGE_SIZE and INPUT.MIN_SCALE"
    return [*_flip(cfg), ResizeAndCrop(resize, FixedSizeCrop((side, side)), keys)]


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
