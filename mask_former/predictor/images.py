"""Convert an image of any kind to RGB pixels."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from mask_former.data.formats.pixels import (
    deep_bits,
    deep_to_8_bit,
    image_errors,
    read_pixels,
)
from mask_former.utils.bounded_files import read_bytes
from mask_former.utils.errors import short

__all__ = ["ImageLike", "LoadedImage", "load_image", "read_image"]

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any] | Tensor"
"""A path, a PIL image, a numpy array H×W×3 or H×W, or a torch tensor 3×H×W."""

_EXPECTED = "expected H×W×3 (RGB) or H×W"


class LoadedImage(NamedTuple):
    """An image in the form that the predictor uses."""

    pixels: NDArray[np.uint8]
    """H×W×3, RGB."""
    file_name: str | None
    """The file that it was read from, or None."""


def load_image(image: ImageLike) -> LoadedImage:
    """Convert an image to RGB pixels of 8 bits; grey images get three equal channels.

    Args:
        image: A path to a file that Pillow reads, or a PIL image (both are turned upright according
            to their EXIF data); a numpy array H×W×3 (RGB) or H×W, uint8 or uint16; or a torch
            tensor 3×H×W (RGB) or H×W, uint8.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not an image, or has another shape, type or range of values.
    """
    if isinstance(image, str | os.PathLike):
        return LoadedImage(read_image(Path(image).expanduser()), os.fspath(image))
    if isinstance(image, Image.Image):
        return LoadedImage(_from_pil(image), getattr(image, "filename", "") or None)
    if isinstance(image, Tensor):
        return LoadedImage(_from_tensor(image), None)
    if isinstance(image, np.ndarray):
        return LoadedImage(_from_array(image), None)
    raise ValueError(
        f"{type(image).__name__} {short(image, 40)!r} is not an image; expected a path, a PIL "
        "image, a numpy array (H×W×3, RGB, uint8) or a torch tensor (3×H×W, RGB, uint8)."
    )


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read an image file with Pillow, upright (EXIF), with 16 bits reduced to 8.

    Returns:
        Pixels H×W×3, RGB.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is not an image, or is damaged.
    """
    with image_errors(f"{path}:"):
        return read_pixels(read_bytes(path), "RGB")


def _from_pil(image: Image.Image) -> NDArray[np.uint8]:
    upright = ImageOps.exif_transpose(image)
    if image.mode[0] not in "IF":
        return np.array(upright.convert("RGB"))
    pixels = np.asarray(upright)  # Pillow would clip values deeper than 8 bits
    if image.format:  # it comes from a file, which defines its bit depth
        try:
            return deep_to_8_bit(pixels, deep_bits(image))
        except ValueError as error:
            name = getattr(image, "filename", "")
            raise ValueError(
                f"The image {name or '(PIL image)'} cannot be used: {error}."
            ) from error
    if pixels.dtype == np.int32 and pixels.size and 0 <= pixels.min() <= pixels.max() < 2**16:
        pixels = pixels.astype(np.uint16)
    return _from_array(pixels)


def _from_tensor(image: Tensor) -> NDArray[np.uint8]:
    shape = tuple(image.shape)
    if image.ndim == 3 and shape[0] != 3:
        hint = "use image.permute(2, 0, 1)" if shape[2] == 3 else "3 channels, RGB"
        raise ValueError(f"The tensor has shape {shape}; expected 3×H×W: {hint}.")
    pixels = image.detach().cpu().numpy()
    return _from_array(pixels.transpose(1, 2, 0) if image.ndim == 3 else pixels)


def _from_array(image: NDArray[Any]) -> NDArray[np.uint8]:
    if image.ndim == 3 and image.shape[2] != 3:
        shape = "×".join(map(str, image.shape))
        hints = {1: ": use image[..., 0]", 4: ": use image[..., :3] to drop the fourth channel"}
        hint = hints.get(image.shape[2], "")
        if image.shape[0] == 3:
            hint = ": use image.transpose(1, 2, 0)"
        raise ValueError(f"The array is {shape}; {_EXPECTED}{hint}.")
    if image.ndim not in (2, 3):
        found = "×".join(map(str, image.shape)) or "a single value"
        hint = "; give several images as a list" if image.ndim == 4 else ""
        raise ValueError(f"The array is {found}; {_EXPECTED}{hint}.")
    if not image.size:
        raise ValueError(f"The image is empty: {'×'.join(map(str, image.shape))}.")
    if image.dtype == np.uint16:
        image = image >> 8
    elif image.dtype != np.uint8:
        raise ValueError(_about_values(image))
    pixels = image.astype(np.uint8)  # a copy: the caller's may change later
    return np.ascontiguousarray(pixels if image.ndim == 3 else np.dstack([pixels] * 3))


def _about_values(image: NDArray[Any]) -> str:
    low, high = image.min(), image.max()
    found = f"The image holds {image.dtype} values from {low:g} to {high:g}; expected uint8"
    if image.dtype.kind == "f" and low >= 0 and high <= 1:
        return f"{found} in 0 … 255: use (255 * image).round(), converted to uint8."
    if image.dtype.kind in "iuf" and low >= 0 and high <= 255:
        return f"{found}: use image.round(), converted to uint8, if 0 is black and 255 is white."
    if image.dtype.kind == "b":
        return f"{found} in 0 … 255."
    return f"{found} in 0 … 255 (or uint16). Do not normalise the image: the predictor does."
