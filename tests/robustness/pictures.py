"""Unusual but valid image files, each with the pixels that reading it must return."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 40, 60
SHARP = {"quality": 100, "subsampling": 0}
"""Options of a JPEG that is almost lossless."""


def scene(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Return an RGB image, H×W×3, whose four quadrants have different colours."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 200, 30, 30
    pixels[: height // 2, width // 2 :] = 30, 200, 30
    pixels[height // 2 :, : width // 2] = 30, 30, 200
    pixels[height // 2 :, width // 2 :] = 220, 220, 60
    return pixels


@dataclass(frozen=True)
class OddImage:
    """An image file and its pixels."""

    name: str
    write: Callable[[Path], object]
    expected: NDArray[np.uint8]
    """RGB, H×W×3."""
    tolerance: int = 0
    """The largest allowed difference of a value; above 0 for lossy formats."""


def _save(pixels: NDArray[np.uint8], mode: str | None = None, **options: object) -> Callable:
    image = Image.fromarray(pixels)
    return lambda path: (image.convert(mode) if mode else image).save(path, **options)


def _grey() -> NDArray[np.uint8]:
    grey = np.asarray(Image.fromarray(scene()).convert("L"))
    return np.dstack([grey] * 3)


def _transparent(path: Path) -> None:
    """Save with a half that is almost transparent; readers must ignore the transparency."""
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 3
    Image.fromarray(np.concatenate([scene(), alpha], axis=2)).save(path)


def _palette(path: Path) -> None:
    image = Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    image.save(path, transparency=0)


def _turned(path: Path) -> None:
    """Save rotated by 90° counter-clockwise, with an EXIF tag that it must be rotated back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(np.ascontiguousarray(np.rot90(scene())))
    image.save(path, exif=exif, **(SHARP if path.suffix == ".jpg" else {}))


def _animated(path: Path) -> None:
    frames = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    lossless = {"lossless": True} if path.suffix == ".webp" else {}
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, **lossless)


def _deep_colour(path: Path) -> None:
    cv2.imwrite(str(path), scene()[..., ::-1].astype(np.uint16) * 257)


def _deep_grey(path: Path) -> None:
    Image.fromarray(_grey()[..., 0].astype(np.uint16) * 257).save(path)


def _deep_pgm(path: Path) -> None:
    """Write a 16-bit PGM byte by byte, because Pillow 10 cannot."""
    values = _grey()[..., 0].astype(">u2") * 257
    path.write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes())


def write_too_deep(path: Path) -> None:
    """Write an image of 32-bit values up to 255, which would be black if read as 16-bit values."""
    Image.fromarray(_grey()[..., 0].astype(np.int32)).save(path)


ODD_IMAGES = [
    OddImage("one_pixel.png", _save(scene(2, 2)[1:, 1:]), scene(2, 2)[1:, 1:]),
    OddImage("line.png", _save(scene(2, 5000)[:1]), scene(2, 5000)[:1]),
    OddImage("column.png", _save(scene(5000, 2)[:, :1]), scene(5000, 2)[:, :1]),
    OddImage("grey.png", _save(_grey()[..., 0]), _grey()),
    OddImage("grey.jpg", _save(_grey()[..., 0], quality=95), _grey(), tolerance=12),
    OddImage("alpha.png", _transparent, scene()),
    OddImage("grey_alpha.png", _save(scene(), "LA"), _grey()),
    OddImage("deep_grey.png", _deep_grey, _grey()),
    OddImage("deep_grey.tif", _deep_grey, _grey()),
    OddImage("deep_grey.pgm", _deep_pgm, _grey()),
    OddImage("deep_colour.png", _deep_colour, scene()),
    OddImage("cmyk.tif", _save(scene(), "CMYK"), scene(), tolerance=1),
    OddImage("cmyk.jpg", _save(scene(), "CMYK", **SHARP), scene(), tolerance=3),
    OddImage("turned.png", _turned, scene()),
    OddImage("turned.jpg", _turned, scene(), tolerance=3),
    OddImage("animated.gif", _animated, scene()),
    OddImage("animated.webp", _animated, scene()),
    OddImage("animated.png", _animated, scene()),
    OddImage("palette.png", _palette, scene()),
    OddImage("palette.gif", _palette, scene()),
]


def write_bomb(path: Path, side: int = 100_000) -> None:
    """Write a PNG of about a hundred bytes whose header claims ``side``×``side`` pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
