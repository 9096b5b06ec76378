"""The training augmentations of MaskFormer and of DETR, built from detectron2's.

What is drawn, and from which distributions, is detectron2's own; two steps are done in fewer
passes over the pixels. All draws come from numpy, so that its seed fixes an example.
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

from .crops import ClassUniformCrop, ResizeAndCrop

__all__ = ["ColorAugSSD", "build_augmentation", "build_detr_augmentation"]

DETR_PRE_CROP_SIZES = (400, 500, 600)
"""Shortest edges, in pixels, that DETR resizes to before it crops."""


class HFlipTransform(T.HFlipTransform):
    """detectron2's, contiguous: to copy the view that it returns takes longer than the flip."""

    def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
        """Args: img: H×W or H×W×3, 8 or 16 bit. Returns: the same, left and right exchanged."""
        return cv2.flip(img, 1)


class RandomFlip(T.RandomFlip):
    """detectron2's, with the same draws."""

    def get_transform(self, image: NDArray[Any]) -> T.Transform:
        """Args: image: H×W×3."""
        transform = super().get_transform(image)
        is_horizontal = isinstance(transform, T.HFlipTransform)
        return HFlipTransform(transform.width) if is_horizontal else transform


class ColorAugSSD(T.Augmentation):
    """The colour jitter of SSD (Liu et al., 2016): brightness, contrast, saturation and hue.

    Ranges, order and rounding are those of `detectron2.projects.point_rend.ColorAugSSDTransform`.
    That one draws from the `random` module while it is applied, so the same transform gives
    another result each time; here the transform is fixed once it is drawn. And each step is a
    look-up in 256 values rather than a pass in floating point.
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
        """
        Args:
            img_format: "RGB" or "BGR".
            brightness_delta: at most this is added or taken away, of 255.
            contrast_low, contrast_high: the range of the factor on all channels.
            saturation_low, saturation_high: the range of the factor on the saturation.
            hue_delta: at most this is added or taken away, in units of 2 degrees.
        """
        self._init(locals())

    def get_transform(self, image: NDArray[Any]) -> T.ColorTransform:
        """Draw one jitter; each of the four steps is left out half of the time."""
        steps: list[Callable[[], NDArray[Any]]] = [self._saturation, self._hue]
        steps.insert(0 if np.random.randint(2) else 2, self._contrast)
        tables = [draw() for draw in (self._brightness, *steps) if np.random.randint(2)]
        return T.ColorTransform(partial(_look_up, tables=tables, img_format=self.img_format))

    def _brightness(self) -> NDArray[Any]:
        return _linear(1, np.random.uniform(-self.brightness_delta, self.brightness_delta))

    def _contrast(self) -> NDArray[Any]:
        return _linear(np.random.uniform(self.contrast_low, self.contrast_high))

    def _saturation(self) -> NDArray[Any]:
        factor = np.random.uniform(self.saturation_low, self.saturation_high)
        return _hsv_table(saturation=_linear(factor))

    def _hue(self) -> NDArray[Any]:
        shift = np.random.randint(-self.hue_delta, self.hue_delta + 1)
        return _hsv_table(hue=((np.arange(256) + shift) % 180).astype(np.uint8))


def _linear(factor: float, offset: float = 0) -> NDArray[Any]:
    """What each 8-bit value becomes: 256 values."""
    values = np.arange(256, dtype=np.float32) * factor + offset
    return np.clip(values, 0, 255).astype(np.uint8)


def _hsv_table(
    hue: NDArray[Any] | None = None, saturation: NDArray[Any] | None = None
) -> NDArray[Any]:
    """1×256×3: what each 8-bit value becomes in the three channels of an HSV image."""
    same = np.arange(256, dtype=np.uint8)
    channels = (same if hue is None else hue, same if saturation is None else saturation, same)
    return np.stack(channels, axis=-1)[None]


def _look_up(image: NDArray[Any], tables: list[NDArray[Any]], img_format: str) -> NDArray[Any]:
    """Apply `tables` in turn: 256 values for the image as it is, 1×256×3 for its HSV form."""
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
    """MaskFormer's: resize, crop with a limit on a category's area, colour jitter, flip.

    Args:
        cfg: its `INPUT` says how; see `mask_former.config`.
        ignore_label: the label that the area limit does not count; None: there is none.

    Raises:
        ValueError: a key of `INPUT` has a value that does not exist.
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
    """DETR's: flip; half of the time resize to 400, 500 or 600 and crop; then resize.

    Args:
        cfg: its `INPUT` says how; see `mask_former.config`.

    Raises:
        ValueError: a key of `INPUT` has a value that does not exist.
    """
    augmentations = _flip(cfg)
    if cfg.INPUT.CROP.ENABLED:
        first = T.ResizeShortestEdge(DETR_PRE_CROP_SIZES, sample_style="choice")
        crop = T.RandomCrop(*_crop_window(cfg))
        augmentations.append(T.RandomApply(ResizeAndCrop(first, crop), prob=0.5))
    return [*augmentations, ResizeAndCrop(_resize(cfg))]


def _resize(cfg: CfgNode) -> T.ResizeShortestEdge:
    sampling = _one_of(cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING, "MIN_SIZE_TRAIN_SAMPLING", _SAMPLINGS)
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    if sampling == "range" and len(sizes) != 2:
        raise ValueError(
            f"INPUT.MIN_SIZE_TRAIN is {tuple(sizes)}: with INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' "
            "it must be two values, the smallest and the largest shortest edge."
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
