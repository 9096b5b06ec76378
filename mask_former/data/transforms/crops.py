"""Where a training example is cut out: resize and crop in one pass, and crops that seek classes."""

from __future__ import annotations

from typing import Any

import numpy as np
from detectron2.data import transforms as T
from numpy.typing import NDArray
from PIL import Image

__all__ = ["ClassUniformCrop", "ResizeAndCrop", "ResizeCropTransform"]


class ResizeCropTransform(T.Transform):
    """Resize an image, then crop it, computing only the pixels that the crop keeps.

    The image is resized by PIL (bilinear, antialiased), as in `T.ResizeTransform`. Label maps of
    any integer type take the pixel under the centre of the new one, which is PIL's rule as well.
    """

    def __init__(
        self, h: int, w: int, new_h: int, new_w: int, x0: int, y0: int, crop_w: int, crop_h: int
    ) -> None:
        """
        Args:
            h, w: the size of the input.
            new_h, new_w: the size it is resized to.
            x0, y0, crop_w, crop_h: the window that is kept of the resized image.
        """
        super().__init__()
        self._set_attributes(locals())

    def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
        """Args: img: H×W×3, uint8. Returns: the same of the window's size."""
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
        """Args: segmentation: H×W, any type. Returns: the same of the window's size."""
        assert segmentation.shape == (self.h, self.w)
        rows = _nearest(self.y0, self.crop_h, self.h, self.new_h)
        columns = _nearest(self.x0, self.crop_w, self.w, self.new_w)
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        window = segmentation[top:bottom].take(columns, axis=1)
        return window[rows - top]  # the fastest way that ends contiguous

    def apply_coords(self, coords: NDArray[Any]) -> NDArray[Any]:
        """Args: coords: N×2 (x, y) in pixels, float."""
        scale = (self.new_w / self.w, self.new_h / self.h)
        return coords * np.asarray(scale) - np.asarray((self.x0, self.y0))


def _nearest(start: int, length: int, old: int, new: int) -> NDArray[Any]:
    """Where the centres of the new pixels `start`, `start`+1, … lie among the old ones."""
    return (2 * np.arange(start, start + length) + 1) * old // (2 * new)


class ResizeAndCrop(T.Augmentation):
    """`resize` and then `crop`: the same draws as the two in turn, done as one transform."""

    def __init__(self, resize: T.ResizeShortestEdge, crop: T.Augmentation | None = None) -> None:
        """
        Args:
            resize: draws the new size.
            crop: `T.RandomCrop` or `T.RandomCrop_CategoryAreaConstraint`, which draws the window
                in the resized image; None keeps the whole.
        """
        self._init(locals())

    def get_transform(
        self, image: NDArray[Any], sem_seg: NDArray[Any] | None
    ) -> ResizeCropTransform:
        """Draw size and window for an H×W×3 image and its label map, which the crop may need.

        Raises:
            ValueError: the image is so thin that nothing is left of it.
        """
        h, w = image.shape[:2]
        resize = self.resize.get_transform(image)
        is_noop = not isinstance(resize, T.ResizeTransform)  # a shortest edge of 0
        new_h, new_w = (h, w) if is_noop else (resize.new_h, resize.new_w)
        if not new_h or not new_w:
            raise ValueError(
                f"{w}×{h} pixels (width×height) is too thin: INPUT.MIN_SIZE_TRAIN and "
                f"MAX_SIZE_TRAIN make {new_w}×{new_h} of it. Take the image out of the dataset."
            )
        whole = ResizeCropTransform(h, w, new_h, new_w, 0, 0, new_w, new_h)
        if self.crop is None:
            return whole
        # Crops look at the labels, but of the image only at its shape.
        canvas = np.broadcast_to(np.uint8(0), (new_h, new_w))
        labels = None
        # Crops count labels by sorting them: fastest for 32 bit.
        if sem_seg is not None and _reads_labels(self.crop):
            labels = whole.apply_segmentation(sem_seg).astype(np.int32)
        window = self.crop(T.AugInput(canvas, sem_seg=labels))
        return ResizeCropTransform(h, w, new_h, new_w, window.x0, window.y0, window.w, window.h)


def _reads_labels(crop: T.Augmentation) -> bool:
    return isinstance(crop, ClassUniformCrop) or getattr(crop, "single_category_max_area", 1) < 1


class ClassUniformCrop(T.Augmentation):
    """Some of a crop's windows moved to where a class is that is drawn among the image's.

    Each class of the image is as likely as any other, however few its pixels are, and then each of
    its pixels (Zhu et al., 2019, *Improving Semantic Segmentation via Video Propagation and Label
    Relaxation*, section 3.4, draw classes for whole epochs).
    """

    def __init__(
        self, crop: T.Augmentation, probability: float, ignore_label: int | None = None
    ) -> None:
        """
        Args:
            crop: draws the window's size, and its place where no class is drawn.
            probability: how often a class is drawn, in 0 … 1.
            ignore_label: a label that is no class; None: there is none.

        Raises:
            ValueError: `probability` is out of its range.
        """
        if not 0 <= probability <= 1:
            raise ValueError(
                f"INPUT.CROP.CLASS_UNIFORM is {probability}, expected a probability, 0 to 1."
            )
        self._init(locals())

    def get_transform(self, image: NDArray[Any], sem_seg: NDArray[Any] | None) -> T.CropTransform:
        """Draw the window for an image and its H×W label map; without one, as `crop` does."""
        window = self.crop(T.AugInput(image, sem_seg=sem_seg))
        if sem_seg is None or np.random.rand() >= self.probability:
            return window
        classes = np.unique(sem_seg)
        classes = (
            classes[classes != self.ignore_label] if self.ignore_label is not None else classes
        )
        if not len(classes):
            return window
        rows, columns = np.nonzero(sem_seg == np.random.choice(classes))
        pixel = np.random.randint(len(rows))
        y0 = _start(int(rows[pixel]), window.h, image.shape[0])
        x0 = _start(int(columns[pixel]), window.w, image.shape[1])
        return T.CropTransform(x0, y0, window.w, window.h)


def _start(pixel: int, length: int, size: int) -> int:
    """Draw where a window of `length` begins that holds `pixel`, within 0 … `size`."""
    return np.random.randint(max(0, pixel - length + 1), min(pixel, size - length) + 1)
