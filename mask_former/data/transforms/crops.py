"""Crops of training examples: resizing and cropping in one pass, and crops of rare classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray
from PIL import Image

from mask_former.structures import Size

__all__ = ["ClassUniformCrop", "FixedSizeCrop", "ResizeAndCrop", "ResizeCropTransform"]


class ResizeCropTransform(T.Transform):
    """A transform that resizes and then crops, but computes only the pixels inside the crop.

    PIL resizes images (bilinear, antialiased), as in ``T.ResizeTransform``. In label maps, of any
    integer type, each new pixel takes the value under its centre, as in PIL.
    """

    def __init__(
        self, h: int, w: int, new_h: int, new_w: int, x0: int, y0: int, crop_w: int, crop_h: int
    ) -> None:
        """Store the sizes and the window.

        Args:
            h, w: the size of the input.
            new_h, new_w: the size after resizing.
            x0, y0, crop_w, crop_h: the crop's window in the resized image.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
        """Transform an image, H×W×3, uint8, to the window's size."""
        assert img.shape[:2] == (self.h, self.w) and img.dtype == np.uint8
        scale_x, scale_y = self.w / self.new_w, self.h / self.new_h
        box = (
            self.x0 * scale_x,
            self.y0 * scale_y,
            (self.x0 + self.crop_w) * scale_x,
            (self.y0 + self.crop_h) * scale_y,
        )
        size = (self.crop_w, self.crop_h)
        resized = Image.fromarray(img).resize(size, Image.Resampling.BILINEAR, box=box)
        return np.array(resized)

    def apply_segmentation(self, segmentation: NDArray[Any]) -> NDArray[Any]:
        """Transform a label map, H×W, of any type, to the window's size."""
        assert segmentation.shape == (self.h, self.w)
        rows = _nearest(self.y0, self.crop_h, self.h, self.new_h)
        columns = _nearest(self.x0, self.crop_w, self.w, self.new_w)
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        window = segmentation[top:bottom].take(columns, axis=1)
        return window[rows - top]  # the fastest way to a contiguous result

    def apply_coords(self, coords: NDArray[Any]) -> NDArray[Any]:
        """Transform coordinates, N×2 (x, y) in pixels, float."""
        scale = (self.new_w / self.w, self.new_h / self.h)
        return coords * np.asarray(scale) - np.asarray((self.x0, self.y0))


def _nearest(start: int, length: int, old: int, new: int) -> NDArray[Any]:
    """Find the old pixels under the centres of the new pixels ``start``, ``start``+1, ….

    PIL itself computes them, because it rounds centres that lie between two pixels up or down.
    """
    line = Image.fromarray(np.arange(old, dtype=np.int32)[None])
    resized = line.resize((new, 1), Image.Resampling.NEAREST)
    return np.asarray(resized)[0, start : start + length]


class ResizeAndCrop(T.Augmentation):
    """Resizing and cropping as one transform; the new size is drawn first, then the window."""

    def __init__(
        self,
        resize: T.ResizeShortestEdge | T.ResizeScale,
        crop: T.Augmentation | None = None,
        keys: str = "INPUT.MIN_SIZE_TRAIN and INPUT.MAX_SIZE_TRAIN",
    ) -> None:
        """Store the two augmentations.

        Args:
            resize: draws the new size.
            crop: draws the window in the resized image: a ``ClassUniformCrop``, ``FixedSizeCrop``,
                ``T.RandomCrop`` or ``T.RandomCrop_CategoryAreaConstraint``; None: keep the full
                image.
            keys: the config keys of the new size, for error messages.
        """
        self._init(locals())

    def get_transform(
        self, image: NDArray[Any], sem_seg: NDArray[Any] | None
    ) -> ResizeCropTransform:
        """Draw size and window for an image H×W×3 and its label map, which some crops read.

        Raises:
            ValueError: if the image is so thin that a side would be resized to 0 pixels.
        """
        h, w = image.shape[:2]
        resize = self.resize.get_transform(image)
        is_noop = not isinstance(resize, T.ResizeTransform)  # a shortest edge of 0
        new_h, new_w = (h, w) if is_noop else (resize.new_h, resize.new_w)
        if not new_h or not new_w:
            raise ValueError(
                f"{w}×{h} pixels (width×height) is too thin: {self.keys} "
                f"resize it to {new_w}×{new_h}. Remove the image from the "
                "dataset."
            )
        whole = ResizeCropTransform(h, w, new_h, new_w, 0, 0, new_w, new_h)
        if self.crop is None:
            return whole
        # Crops read the labels, but only the shape of the image.
        canvas = np.broadcast_to(np.uint8(0), (new_h, new_w))
        labels = None
        # Crops count labels by sorting them, which is fastest with 32 bits.
        if sem_seg is not None and _reads_labels(self.crop):
            labels = whole.apply_segmentation(sem_seg).astype(np.int32)
        window = self.crop(T.AugInput(canvas, sem_seg=labels))
        return ResizeCropTransform(h, w, new_h, new_w, window.x0, window.y0, window.w, window.h)


def _reads_labels(crop: T.Augmentation) -> bool:
    return isinstance(crop, ClassUniformCrop) or getattr(crop, "single_category_max_area", 1) < 1


class FixedSizeCrop(T.FixedSizeCrop):
    """detectron2's crop without its padding, as one window that lies inside the image."""

    def __init__(self, crop_size: Size) -> None:
        """Store the largest height and width of a window."""
        super().__init__(crop_size, pad=False)

    def get_transform(self, image: NDArray[Any]) -> T.CropTransform:
        """Draw the window for an image H×W×3; a side that is shorter than the window stays."""
        window, (height, width) = super().get_transform(image).transforms[0], image.shape[:2]
        return T.CropTransform(
            window.x0, window.y0, min(window.w, width), min(window.h, height), width, height
        )


class ClassUniformCrop(T.Augmentation):
    """A crop that moves some of its windows so that they contain a pixel of a random class.

    The class is drawn uniformly from those in the image, however few pixels they have, then a
    pixel uniformly from those of the class. (Zhu et al., 2019, *Improving Semantic Segmentation via
    Video Propagation and Label Relaxation*, section 3.4, draw classes for whole epochs.)
    """

    def __init__(
        self, crop: T.Augmentation, probability: float, ignore_label: int | None = None
    ) -> None:
        """Store the crop and the probability.

        Args:
            crop: draws the window's size, and its position if no class is drawn.
            probability: the probability that a class is drawn, in 0 … 1.
            ignore_label: the label that is not a class; None: there is no such label.

        Raises:
            ValueError: if ``probability`` is out of range.
        """
        if not 0 <= probability <= 1:
            raise ValueError(
                f"INPUT.CROP.CLASS_UNIFORM is {probability}, expected a probability, 0 to 1."
            )
        self._init(locals())

    def get_transform(self, image: NDArray[Any], sem_seg: NDArray[Any] | None) -> T.CropTransform:
        """Draw the window for an image and its label map H×W; without a map, as ``crop`` does."""
        window = self.crop(T.AugInput(image, sem_seg=sem_seg))
        if sem_seg is None or np.random.rand() >= self.probability:
            return window
        classes = np.unique(sem_seg)
        if self.ignore_label is not None:
            classes = classes[classes != self.ignore_label]
        if not len(classes):
            return window
        rows, columns = np.nonzero(sem_seg == np.random.choice(classes))
        pixel = np.random.randint(len(rows))
        y0 = _start(int(rows[pixel]), window.h, image.shape[0])
        x0 = _start(int(columns[pixel]), window.w, image.shape[1])
        return T.CropTransform(x0, y0, window.w, window.h)


def _start(pixel: int, length: int, size: int) -> int:
    """Draw the start of a window of ``length`` that contains ``pixel``, within 0 … ``size``."""
    return np.random.randint(max(0, pixel - length + 1), min(pixel, size - length) + 1)
