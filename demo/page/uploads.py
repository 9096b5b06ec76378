"""Check uploads: an image or a video, readable, and within the limits of the page."""

from __future__ import annotations

import warnings
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.cli.media import VideoReader
from mask_former.data.formats.pixels import image_formats
from mask_former.predictor.images import read_image
from mask_former.utils.errors import one_line

from .limits import MEGA, Limits

__all__ = ["Limits", "check_size", "is_video", "read_upload"]


def is_video(path: Path) -> bool:
    """Return False if Pillow opens the file as an image, True if OpenCV opens it as a video.

    Raises:
        ValueError: if it is neither; the message is for the visitor.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty (0 bytes). Save or copy it again.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the page has a limit
        try:
            with Image.open(path, formats=image_formats()):
                return False
        except Image.DecompressionBombError:
            return False  # an image, which check_size refuses
        except Exception:  # Pillow's readers raise nearly anything on a damaged file
            pass
    try:
        if _has_a_frame(path):
            return True
        reason = ""
    except ImportError as error:  # OpenCV
        reason = f" ({error})"
    raise ValueError(
        f"{path.name} is neither an image nor a video that can be read{reason}. Drop in a "
        "JPEG, PNG, WebP or TIFF image, or an MP4, WebM, MOV or AVI video."
    )


def _has_a_frame(path: Path) -> bool:
    """Decode a frame: OpenCV opens some files by their suffix alone and then cannot decode them."""
    try:
        reader = VideoReader(str(path))
    except ValueError:
        return False
    with closing(reader):
        while True:
            try:
                return next(reader) is not None
            except ValueError:  # a broken frame
                continue
            except StopIteration:
                return False


def read_upload(path: Path, limits: Limits) -> NDArray[np.uint8]:
    """Read an uploaded image.

    Returns:
        H×W×3, RGB.

    Raises:
        ValueError: if it is too large or damaged; the message is for the visitor.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=image_formats()) as image:  # reads the header only
                width, height = image.size
                check_size(path.name, width, height, limits)
            return read_image(path)
    except Image.DecompressionBombError as error:
        raise ValueError(_too_large(path.name, "too many", limits)) from error
    except ValueError as error:
        text = one_line(error)
        if str(path) not in text:
            raise
        raise ValueError(
            f"{text.replace(str(path), path.name)} Save it again with an image editor."
        ) from error


def check_size(name: str, width: int, height: int, limits: Limits) -> None:
    """Check the size of an image or a frame, in pixels.

    Raises:
        ValueError: if it has more pixels than the page accepts.
    """
    megapixels = width * height / MEGA
    if megapixels > limits.megapixels:
        raise ValueError(_too_large(name, f"{width}×{height} = {megapixels:.0f} million", limits))


def _too_large(name: str, found: str, limits: Limits) -> str:
    return (
        f"{name} has {found} pixels; this page accepts up to {limits.megapixels:g} million. "
        "Make it smaller, or start the page with a larger --max-megapixels."
    )
