"""Image files of a result: the drawing, or a map of class ids."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from mask_former.utils.atomic_files import replace_file

from .arrays import ResultArrays

__all__ = [
    "FORMATS",
    "DrawOptions",
    "is_image_suffix",
    "save_image",
    "save_overlay",
    "save_semantic",
]

FORMATS = ("overlay", "semantic-png", "panoptic-coco", "instances-coco", "npz")
"""Formats of results: see :class:`mask_former.results.ResultWriter`."""

_MAX_8_BIT = 255
"""Maximum number of classes in an 8-bit map; the value itself stands for "no class"."""


class DrawOptions(TypedDict, total=False):
    """Options of drawings: see :meth:`~mask_former.results.ResultArrays.draw`."""

    threshold: float | None
    opacity: float
    legend: bool
    scale: int


def is_image_suffix(suffix: str) -> bool:
    """Return True if Pillow can write files with this suffix, such as ".png"."""
    return Image.registered_extensions().get(suffix.lower()) in Image.SAVE


def save_overlay(result: ResultArrays, path: Path, kind: str | None, options: DrawOptions) -> None:
    """Write the drawing atomically, in the format of the path's suffix."""
    save_image(Image.fromarray(result.draw(kind, **options)), path)


def save_image(drawing: Image.Image, path: Path) -> None:
    """Write a drawing atomically, in the format of the path's suffix."""
    file_format = Image.registered_extensions()[path.suffix.lower()]
    settings = {"compress_level": 3} if file_format == "PNG" else {"quality": 95}
    replace_file(path, lambda part: drawing.save(part, format=file_format, **settings))


def save_semantic(result: ResultArrays, path: Path) -> None:
    """Write class ids as a PNG, atomically.

    With up to 255 classes, the file has 8 bits per pixel and the classes' colours as its palette,
    so that viewers show colours and readers get ids; 255 means "no class". With more classes, it
    has 16 bits per pixel, in grey, and 65535 means "no class".

    Raises:
        ValueError: if there is no semantic result.
    """
    if result.semantic is None:
        raise missing_result("semantic-png", "semantic", result)
    if len(result.classes.names) > _MAX_8_BIT:
        id_map = Image.fromarray(result.semantic.astype(np.uint16))  # -1 becomes 65535
    else:
        id_map = Image.fromarray(result.semantic.astype(np.uint8))  # -1 becomes 255
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(result.classes.colors)] = result.classes.colors
        id_map.putpalette(palette.tobytes())
    replace_file(path, lambda part: id_map.save(part, format="PNG", compress_level=3))


def missing_result(format_name: str, kind: str, result: ResultArrays) -> ValueError:
    """Create the error for a format whose result is missing."""
    return ValueError(
        f"The format {format_name!r} needs a {kind} result; {result.file_name or 'the image'} "
        f"has {result.kinds}: ask the model for it (`kinds`), or leave the format out."
    )
