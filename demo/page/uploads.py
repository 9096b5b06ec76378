"""Is what was dropped in a picture or a video, and can the page take it?"""

from __future__ import annotations

import warnings
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.cli.media import VideoReader
from mask_former.predictor.images import read_image
from mask_former.utils.errors import one_line

__all__ = ["Limits", "check_size", "is_video", "read_picture"]

_MEGA = 1_000_000


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask of the machine."""

    megapixels: float = 50
    """Of a picture, or of a frame of a video."""
    frames: int = 300
    """Of a video; what comes after them is left out."""


def is_video(path: Path) -> bool:
    """False where Pillow opens the file as a picture, True where OpenCV opens it as a video.

    Raises:
        ValueError: where it is neither; the text is for the one who dropped it in.
    """
    if path.stat().st_size == 0:
        raise ValueError(f"{path.name} is empty (0 bytes). Was it saved or copied completely?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have our own limit
        try:
            with Image.open(path) as image:
                return image.format == "MPEG"
        except Image.DecompressionBombError:
            return False  # a picture for sure; check_size refuses it
        except Exception:  # Pillow's readers raise nearly anything on a damaged file
            pass
    try:
        if _has_a_frame(path):
            return True
        reason = ""
    except ImportError as error:  # OpenCV
        reason = f" ({error})"
    raise ValueError(
        f"{path.name} is neither a picture nor a video that can be read{reason}. Drop in a "
        "JPEG, PNG, WebP or TIFF picture, or an MP4, WebM, MOV or AVI video."
    )


def _has_a_frame(path: Path) -> bool:
    """False, too, for what OpenCV opens by its suffix alone and then cannot decode."""
    try:
        reader = VideoReader(str(path))
    except ValueError:
        return False
    with closing(reader):
        while True:
            try:
                return next(reader) is not None
            except ValueError:  # this one is broken
                continue
            except StopIteration:
                return False


def read_picture(path: Path, limits: Limits) -> NDArray[np.uint8]:
    """A picture, H×W×3, RGB, uint8.

    Raises:
        ValueError: if it is too large or damaged; the text is for the one who dropped it in.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:  # reads the header only
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
            f"{text.replace(str(path), path.name)}. Save it again with an image editor."
        ) from error


def check_size(name: str, width: int, height: int, limits: Limits) -> None:
    """
    Raises:
        ValueError: if a picture or frame has more pixels than the page takes.
    """
    megapixels = width * height / _MEGA
    if megapixels > limits.megapixels:
        raise ValueError(_too_large(name, f"{width}×{height} = {megapixels:.0f} million", limits))


def _too_large(name: str, found: str, limits: Limits) -> str:
    return (
        f"{name} has {found} pixels; this page takes up to {limits.megapixels:g} million. "
        "Make it smaller, or start the page with a larger --max-megapixels."
    )
