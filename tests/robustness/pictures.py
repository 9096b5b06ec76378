"""Pictures that are sound but odd, each with what has to come out of it."""

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
"""A JPEG that loses next to nothing."""


def scene(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """Four fields of colour, no two alike: H×W×3, RGB."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 200, 30, 30
    pixels[: height // 2, width // 2 :] = 30, 200, 30
    pixels[height // 2 :, : width // 2] = 30, 30, 200
    pixels[height // 2 :, width // 2 :] = 220, 220, 60
    return pixels


@dataclass(frozen=True)
class OddPicture:
    """A file and the pixels that are in it."""

    name: str
    write: Callable[[Path], object]
    expected: NDArray[np.uint8]
    tolerance: int = 0
    """Of each value; above 0 for formats that lose something."""


def _save(pixels: NDArray[np.uint8], mode: str | None = None, **options: object) -> Callable:
    image = Image.fromarray(pixels)
    return lambda path: (image.convert(mode) if mode else image).save(path, **options)


def _grey() -> NDArray[np.uint8]:
    grey = np.asarray(Image.fromarray(scene()).convert("L"))
    return np.dstack([grey] * 3)


def _transparent(path: Path) -> None:
    """Half transparent and half not: transparency is no colour, and is left out."""
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, : WIDTH // 2] = 3
    Image.fromarray(np.concatenate([scene(), alpha], axis=2)).save(path)


def _palette(path: Path) -> None:
    image = Image.fromarray(scene()).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    image.save(path, transparency=0)


def _turned(path: Path) -> None:
    """On its side, with the note that it has to be turned by 90° clockwise."""
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
    """Byte by byte: Pillow 10 does not write these."""
    values = _grey()[..., 0].astype(">u2") * 257
    path.write_bytes(b"P5 %d %d 65535\n" % (WIDTH, HEIGHT) + values.astype(">u2").tobytes())


def write_too_deep(path: Path) -> None:
    """Dark values that have 32 bit: as 16 bit they would be black."""
    Image.fromarray(_grey()[..., 0].astype(np.int32)).save(path)


ODD_PICTURES = [
    OddPicture("one_pixel.png", _save(scene(2, 2)[1:, 1:]), scene(2, 2)[1:, 1:]),
    OddPicture("line.png", _save(scene(2, 5000)[:1]), scene(2, 5000)[:1]),
    OddPicture("column.png", _save(scene(5000, 2)[:, :1]), scene(5000, 2)[:, :1]),
    OddPicture("grey.png", _save(_grey()[..., 0]), _grey()),
    OddPicture("grey.jpg", _save(_grey()[..., 0], quality=95), _grey(), tolerance=12),
    OddPicture("alpha.png", _transparent, scene()),
    OddPicture("grey_alpha.png", _save(scene(), "LA"), _grey()),
    OddPicture("deep_grey.png", _deep_grey, _grey()),
    OddPicture("deep_grey.tif", _deep_grey, _grey()),
    OddPicture("deep_grey.pgm", _deep_pgm, _grey()),
    OddPicture("deep_colour.png", _deep_colour, scene()),
    OddPicture("cmyk.tif", _save(scene(), "CMYK"), scene(), tolerance=1),
    OddPicture("cmyk.jpg", _save(scene(), "CMYK", **SHARP), scene(), tolerance=3),
    OddPicture("turned.png", _turned, scene()),
    OddPicture("turned.jpg", _turned, scene(), tolerance=3),
    OddPicture("animated.gif", _animated, scene()),
    OddPicture("animated.webp", _animated, scene()),
    OddPicture("animated.png", _animated, scene()),
    OddPicture("palette.png", _palette, scene()),
    OddPicture("palette.gif", _palette, scene()),
]


def write_bomb(path: Path, side: int = 100_000) -> None:
    """A PNG of some hundred bytes whose head says that it is ``side``×``side`` pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        check = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", check)

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
