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
from PIL import Image

__all__ = ["check_png", "read_pixels"]

_PNG = b"\x89PNG\r\n\x1a\n"


def read_pixels(content: bytes, image_format: str | None = None) -> NDArray[Any]:
    """The first picture of an image file, turned upright as its EXIF data says.

    Args:
        content: of the file.
        image_format: "RGB" or "BGR" gives H×W×3, uint8: more than 8 bit are scaled, grey ones get
            three equal channels, and a palette its colours. None: the values as they are in the
            file, such as a label map's.

    Raises:
        ValueError: a PNG is damaged, or holds values that are no picture.
        Exception: nearly anything, of Pillow's, for other damaged files.
    """
    check_png(content)
    with _open(content) as image:
        # Pillow would clip what is deeper than 8 bit to white.
        is_deep = image_format is not None and image.mode[0] in "IF"
        upright = detection_utils._apply_exif_orientation(image)
        pixels = detection_utils.convert_PIL_to_numpy(upright, None if is_deep else image_format)
    return _to_8_bit(pixels) if is_deep else np.ascontiguousarray(pixels)


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


def _to_8_bit(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    if pixels.dtype.kind not in "iu" or pixels.min() < 0 or pixels.max() > np.iinfo(np.uint16).max:
        raise ValueError(
            f"holds {pixels.dtype} values from {pixels.min()} to {pixels.max()}; expected 8 or 16 "
            "bit a channel"
        )
    return np.repeat((pixels >> 8).astype(np.uint8)[..., None], 3, axis=2)
