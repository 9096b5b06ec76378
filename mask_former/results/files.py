"""Results of one picture as pictures: drawn, or as a map of class ids."""

from __future__ import annotations

from pathlib import Path
from typing import TypedDict

import numpy as np
from PIL import Image

from mask_former.utils.atomic_files import replace_file

from .arrays import ResultArrays

__all__ = ["FORMATS", "DrawOptions", "is_image_suffix", "save_overlay", "save_semantic"]

FORMATS = ("overlay", "semantic-png", "panoptic-coco", "instances-coco", "npz")
"""What a result can be written as: see :class:`mask_former.results.ResultWriter`."""

_MAX_8_BIT = 255
"""The most classes of a map of 8 bit; the value stands for "no class"."""


class DrawOptions(TypedDict, total=False):
    """How overlays are drawn: see :meth:`Result.draw`."""

    threshold: float | None
    opacity: float
    legend: bool
    scale: int


def is_image_suffix(suffix: str) -> bool:
    """Whether Pillow writes files with this suffix, such as ".png"."""
    return Image.registered_extensions().get(suffix.lower()) in Image.SAVE


def save_overlay(result: ResultArrays, path: Path, kind: str | None, options: DrawOptions) -> None:
    """Write the drawn picture, in the form that the suffix says."""
    picture = Image.fromarray(result.draw(kind, **options))
    form = Image.registered_extensions()[path.suffix.lower()]
    settings = {"compress_level": 3} if form == "PNG" else {"quality": 95}
    replace_file(path, lambda part: picture.save(part, format=form, **settings))


def save_semantic(result: ResultArrays, path: Path) -> None:
    """Write class ids as a PNG, whole or not at all.

    Up to 255 classes: 8 bit with the classes' colours as palette, so that viewers show colours and
    readers get ids; 255 where there is no class. More: 16 bit, grey; 65535 where there is none.

    Raises:
        ValueError: there is no semantic result.
    """
    if result.semantic is None:
        raise missing_result("semantic-png", "semantic", result)
    if len(result.classes.names) > _MAX_8_BIT:
        picture = Image.fromarray(result.semantic.astype(np.uint16))  # -1: 65535
    else:
        picture = Image.fromarray(result.semantic.astype(np.uint8))  # -1: 255
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(result.classes.colors)] = result.classes.colors
        picture.putpalette(palette.tobytes())
    replace_file(path, lambda part: picture.save(part, format="PNG", compress_level=3))


def missing_result(format_name: str, kind: str, result: ResultArrays) -> ValueError:
    """The error for a format whose result is not there."""
    return ValueError(
        f"The format {format_name!r} needs a {kind} result; {result.file_name or 'the picture'} "
        f"has {result.kinds}: ask the model for it (`kinds`), or leave the format out."
    )
