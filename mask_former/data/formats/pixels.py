"""From the content of an image file to its pixels: whole, upright, and not clipped.

Every reader of images and label maps here comes through this file; each words its own errors.
"""

from __future__ import annotations

import io
import zlib
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

__all__ = ["check_png", "deep_bits", "deep_to_8_bit", "read_pixels"]

_PNG = b"\x89PNG\r\n\x1a\n"


def read_pixels(content: bytes, image_format: str | None = None) -> NDArray[Any]:
    """The first picture of an image file, turned upright as its EXIF data says.

    Args:
        content: of the file.
        image_format: "RGB" or "BGR" gives H×W×3, uint8: up to 16 bit are scaled, grey ones get
            three equal channels, and a palette its colours. None: the values as they are in the
            file, such as a label map's, which may have 32 bit.

    Raises:
        ValueError: a PNG is damaged, or a picture has 32 bit, fractions or values below 0.
        Exception: nearly anything, of Pillow's, for other damaged files.
    """
    check_png(content)
    with _open(content) as image:
        # Pillow would clip what is deeper than 8 bit to white.
        is_deep = image_format is not None and image.mode[0] in "IF"
        bits = deep_bits(image) if is_deep else 8
        upright = detection_utils._apply_exif_orientation(image)
        pixels = detection_utils.convert_PIL_to_numpy(upright, None if is_deep else image_format)
    return deep_to_8_bit(pixels, bits) if is_deep else np.ascontiguousarray(pixels)


def _open(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content))
    except Image.UnidentifiedImageError as error:  # which names an object in memory
        what = "it is no image that Pillow knows" if content else "it is empty"
        raise Image.UnidentifiedImageError(what) from error


def check_png(content: bytes) -> None:
    """Compare the checksum of each chunk of a PNG: Pillow leaves out those of the pixels.

    Raises:
        ValueError: one is wrong, or the file breaks off.
    """
    if not content.startswith(_PNG):
        return
    place = len(_PNG)
    while content[place + 4 : place + 8] != b"IEND":
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if (length == 0 and place >= len(content)) or end + 4 > len(content):
            raise ValueError(f"the PNG breaks off after {len(content)} bytes")
        if zlib.crc32(content[place + 4 : end]) != int.from_bytes(content[end : end + 4], "big"):
            raise ValueError(f"the PNG is damaged: the checksum at byte {end} is wrong")
        place = end + 4


def deep_bits(image: Image.Image) -> int:
    """How many bits a value has in the file of a grey image that Pillow holds in more than 8.

    Pillow's mode "I" does not tell: it takes integers of 32 bit, but also PGMs and signed TIFFs of
    16 bit and, in its older versions, PNGs.

    Args:
        image: as it was opened, of a mode that begins with "I" or "F".
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(image.tag_v2[TiffImagePlugin.BITSPERSAMPLE][0])
    has_16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    return 16 if has_16 else 32


def deep_to_8_bit(pixels: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Grey values H×W of 9 to 16 bit as H×W×3 of 8.

    Raises:
        ValueError: there are more bits, so that nothing says which value is white, or values that
            are no whole numbers from 0 on.
    """
    if bits > 16 or pixels.dtype.kind not in "iu" or pixels.min() < 0:
        raise ValueError(
            f"holds {pixels.dtype} values from {pixels.min()} to {pixels.max()}, {bits} bit each; "
            "expected 8 or 16 bit a channel, whole numbers from 0 on. Save it with 8 bit, black as "
            "0 and white as 255"
        )
    return np.repeat((pixels >> (bits - 8)).astype(np.uint8)[..., None], 3, axis=2)
