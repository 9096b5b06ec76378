"""Decode image files completely and upright; values of 9 to 16 bits are scaled, not clipped.

Every reader of images and label maps in the project uses this file, so that training, evaluation,
test-time augmentation and prediction get the same pixels from an image file.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from mask_former.utils.bounded_files import UnreadableFile
from mask_former.utils.errors import short

__all__ = [
    "deep_bits",
    "deep_to_8_bit",
    "image_errors",
    "image_formats",
    "open_image",
    "read_pixels",
]

_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
_PNG = b"\x89PNG\r\n\x1a\n"


def read_pixels(content: bytes, image_format: str | None = None) -> NDArray[Any]:
    """Decode the first frame of an image file and rotate it as its EXIF orientation requires.

    Args:
        content: the bytes of the file.
        image_format: "RGB" or "BGR": values of 9 to 16 bits are scaled to 8 bits, grey is repeated
            to three channels, and palette indices become colours. None: keep the stored values,
            such as those of a label map.

    Returns:
        H×W×3, uint8; for None H×W or H×W×C, in the type that the file stores, up to 32 bits.

    Raises:
        ValueError: if a PNG is damaged, or an image has 32-bit, fractional or negative values.
        Exception: of almost any type if Pillow cannot read the file; see ``image_errors``.
    """
    with open_image(content) as image:
        # Pillow would clip values of more than 8 bits to white.
        is_deep = image_format is not None and image.mode[0] in "IF"
        bits = deep_bits(image) if is_deep else 8
        upright = detection_utils._apply_exif_orientation(image)
        pixels = detection_utils.convert_PIL_to_numpy(upright, None if is_deep else image_format)
    return deep_to_8_bit(pixels, bits) if is_deep else np.ascontiguousarray(pixels)


@cache
def image_formats() -> list[str]:
    """List the formats that are read, of those that this Pillow has.

    Pillow recognises more by their content, whatever the name of the file; for some of them, such
    as EPS, it starts other programs.
    """
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def open_image(content: bytes) -> Image.Image:
    """Open an image file as a PIL image, as stored (without EXIF rotation).

    Raises:
        ValueError, Exception: as in ``read_pixels``.
    """
    check_png(content)
    try:
        return Image.open(io.BytesIO(content), formats=image_formats())
    except Image.UnidentifiedImageError as error:  # its text shows the address of the BytesIO
        reason = "Pillow does not recognise its format" if content else "it is empty"
        raise Image.UnidentifiedImageError(reason) from error


@contextmanager
def image_errors(name: str, *, missing: str = "", damaged: str = "") -> Iterator[None]:
    """Convert every error in reading an image file into one that names the file.

    Args:
        name: the file, with which messages start.
        missing: advice at the end of the message about a missing file.
        damaged: advice at the end of the message about an unreadable file.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: if the file is refused, damaged or not an image.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} is missing. {missing}".rstrip()) from error
    except Exception as error:  # Pillow's readers raise almost any type on a damaged file
        reason = short(str(error), 500) or type(error).__name__
        message = f"{name} cannot be read as an image: {reason.rstrip('.')}. {damaged}"
        raise UnreadableFile(message.rstrip()) from error


def check_png(content: bytes) -> None:
    """Verify the checksum of each chunk of a PNG; Pillow skips those of the pixel data.

    Args:
        content: the bytes of a file; files in other formats are not checked.

    Raises:
        ValueError: if a checksum is wrong, or the file is truncated.
    """
    if not content.startswith(_PNG):
        return
    position = len(_PNG)
    while content[position + 4 : position + 8] != b"IEND":
        length = int.from_bytes(content[position : position + 4], "big")
        end = position + 8 + length
        if (length == 0 and position >= len(content)) or end + 4 > len(content):
            raise ValueError(f"the PNG is truncated after {len(content)} bytes")
        checksum = int.from_bytes(content[end : end + 4], "big")
        if zlib.crc32(content[position + 4 : end]) != checksum:
            raise ValueError(f"the PNG is damaged: the checksum at byte {end} is wrong")
        position = end + 4


def deep_bits(image: Image.Image) -> int:
    """Return the number of bits per value in the file of a grey image with more than 8 bits.

    Pillow's mode "I" is ambiguous: it holds 32-bit integers, but also 16-bit PGMs, signed 16-bit
    TIFFs and, in older versions of Pillow, 16-bit PNGs.

    Args:
        image: an image just opened, in a mode that starts with "I" or "F".
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0])
    has_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    return 16 if has_16 else 32


def deep_to_8_bit(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Convert grey values H×W of 9 to 16 bits to three equal 8-bit channels H×W×3.

    Raises:
        ValueError: if there are more bits, so that the value of white is unknown, or a value is
            fractional or negative.
    """
    if bits > 16 or pixels.dtype.kind not in "iu" or pixels.min() < 0:
        raise ValueError(
            f"it holds {pixels.dtype} values from {pixels.min()} to {pixels.max()}, {bits} bits "
            "each; expected 8 or 16 bits per channel, integers from 0. Save it with 8 bits, black "
            "as 0 and white as 255"
        )
    return np.repeat((pixels >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=2)
