"""Colour jitter: that of detectron2, and that of torchvision."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torchvision.transforms.v2 import functional as F

__all__ = ["ColorAugSSD", "ColorAugTorchvision"]


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
        steps = [self._brightness()] if coin() else []
        draws: list[Callable[[], Any]] = [self._saturation, self._hue]
        draws.insert(0 if coin() else 2, self._contrast)
        steps += [draw() for draw in draws if coin()]
        return T.ColorTransform(partial(self.apply, steps=steps, img_format=self.img_format))

    @staticmethod
    def apply(image: NDArray[Any], steps: list[Any], img_format: str) -> NDArray[Any]:
        """Apply the steps, as tables, to an image H×W×3, uint8."""
        return _look_up(image, steps, img_format)

    def _brightness(self) -> Any:
        return _linear(1, random.uniform(-self.brightness_delta, self.brightness_delta))

    def _contrast(self) -> Any:
        return _linear(random.uniform(self.contrast_low, self.contrast_high))

    def _saturation(self) -> Any:
        factor = random.uniform(self.saturation_low, self.saturation_high)
        return _hsv_table(saturation=_linear(factor))

    def _hue(self) -> Any:
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


class ColorAugTorchvision(ColorAugSSD):
    """The colour jitter of SSD with torchvision's functions, as in EoMT.

    Order and probabilities are those of ``ColorAugSSD``. But the change of the brightness is a
    fraction of 255, that of the hue is in degrees, and contrast and saturation mix the image with
    its mean grey and its grey values.
    """

    @staticmethod
    def apply(image: NDArray[Any], steps: list[Any], img_format: str) -> NDArray[Any]:
        """Apply the steps, as functions of 3×H×W RGB, to an image H×W×3, uint8."""
        order = slice(None, None, 1 if img_format == "RGB" else -1)
        pixels = torch.from_numpy(np.ascontiguousarray(image[..., order])).permute(2, 0, 1)
        for step in steps:
            pixels = step(pixels)
        return np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()[..., order])

    def _brightness(self) -> Any:
        delta = random.uniform(-self.brightness_delta, self.brightness_delta)
        return partial(F.adjust_brightness, brightness_factor=1 + delta / 255)

    def _contrast(self) -> Any:
        factor = random.uniform(self.contrast_low, self.contrast_high)
        return partial(F.adjust_contrast, contrast_factor=factor)

    def _saturation(self) -> Any:
        factor = random.uniform(self.saturation_low, self.saturation_high)
        return partial(F.adjust_saturation, saturation_factor=factor)

    def _hue(self) -> Any:
        shift = random.uniform(-self.hue_delta, self.hue_delta)
        return partial(F.adjust_hue, hue_factor=shift / 360)
