"""Inference preprocessing, shared by the evaluation loader and the predictor."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from numpy.typing import NDArray

__all__ = ["InferencePreprocessing"]


class InferencePreprocessing:
    """Resizing of an image and conversion to a model's input, the same wherever a model runs."""

    def __init__(self, cfg: CfgNode) -> None:
        """Read the settings of a config.

        Args:
            cfg: ``TEST.RESIZE`` or ``INPUT.MIN_SIZE_TEST`` and ``INPUT.MAX_SIZE_TEST`` set the
                size, ``INPUT.FORMAT`` the channel order.

        Raises:
            ValueError: if ``INPUT.FORMAT`` is neither "RGB" nor "BGR", or ``TEST.RESIZE`` is
                unknown.
        """
        if cfg.INPUT.FORMAT not in ("RGB", "BGR"):
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}, expected 'RGB' or 'BGR'.")
        self.is_bgr = cfg.INPUT.FORMAT == "BGR"
        self.resize: Any
        if cfg.TEST.RESIZE:
            self.keys = "TEST.RESIZE and MODEL.EOMT.IMAGE_SIZE"
            self.resize = _ResizeTo(cfg.TEST.RESIZE, tuple(cfg.MODEL.EOMT.IMAGE_SIZE))
        else:
            self.keys = "INPUT.MIN_SIZE_TEST and INPUT.MAX_SIZE_TEST"
            self.resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)

    def __call__(self, image: NDArray[np.uint8]) -> dict[str, Any]:
        """Preprocess one image.

        Args:
            image: H×W×3, uint8, RGB.

        Returns:
            ``image`` (3×h×w, uint8, channels in the order of ``INPUT.FORMAT``), and ``height`` and
            ``width``, the size of the model's output, which is that of the original image.

        Raises:
            ValueError: if the image is so thin that a side would be resized to 0 pixels.
        """
        height, width = image.shape[:2]
        resize = self.resize.get_transform(image)
        # A shortest edge of 0 pixels means "do not resize": the transform then has no size.
        new_height, new_width = getattr(resize, "new_h", height), getattr(resize, "new_w", width)
        if not new_height or not new_width:
            raise ValueError(
                f"{width}×{height} pixels (width×height) is too thin: {self.keys} resize it to "
                f"{new_width}×{new_height}."
            )
        resized = resize.apply_image(image[:, :, ::-1] if self.is_bgr else image)
        pixels = torch.from_numpy(resized.transpose(2, 0, 1).copy())  # contiguous and writable
        return {"image": pixels, "height": height, "width": width}


class _ResizeTo:
    """Resizing of images to fit into a size, or to cover it (EoMT)."""

    def __init__(self, mode: str, size: tuple[int, int]) -> None:
        if mode not in ("fit", "cover"):
            raise ValueError(f"TEST.RESIZE is {mode!r}, expected 'fit', 'cover' or ''.")
        self.size = size
        self.choose = min if mode == "fit" else max

    def get_transform(self, image: NDArray[np.uint8]) -> T.Transform:
        height, width = image.shape[:2]
        factor = self.choose(self.size[0] / height, self.size[1] / width)
        # Python rounds halves to the even number, as the published code does
        return T.ResizeTransform(height, width, round(height * factor), round(width * factor))
