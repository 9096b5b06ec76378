"""Read JSON files in COCO's formats, and name the file in every error about its content."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mask_former.structures import Size
from mask_former.utils import bounded_files
from mask_former.utils.bounded_files import DATASET_BYTES, UnreadableFile
from mask_former.utils.errors import short

__all__ = ["MAX_SIDE", "image_size", "located_errors", "read_json"]

MAX_SIDE = 65_535
"""Longest side of an image in pixels; a larger number is a mistake, and would take all memory."""


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON file in one of COCO's formats.

    Args:
        path: the file.
        expected: name of the format, for error messages.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: if it is not a JSON file, or has no ``images`` or ``annotations``.
    """
    content = bounded_files.read_json(path, DATASET_BYTES)
    for key in ("images", "annotations"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not entries:
            raise UnreadableFile(f"{path}: expected {expected}, but `{key}` is missing.")
        if not isinstance(entries, list) or set(map(type, entries)) != {dict}:
            raise UnreadableFile(
                f"{path}: expected {expected}, but `{key}` is {short(entries)}, not a list of "
                "entries with keys: restore the file."
            )
    return content


def image_size(entry: Mapping[str, Any], where: str) -> Size:
    """Read the size of an image from its entry in ``images``.

    Args:
        entry: with ``height`` and ``width`` in pixels.
        where: the file, for the message.

    Returns:
        Height and width.

    Raises:
        UnreadableFile: if a side is not a whole number from 1 to ``MAX_SIDE``.
    """
    sides = entry["height"], entry["width"]
    if not all(type(s) in (int, float) and 1 <= s <= MAX_SIDE and s == int(s) for s in sides):
        raise UnreadableFile(
            f"{where}: the image with the id {short(entry.get('id'))} has the height "
            f"{short(sides[0])} and the width {short(sides[1])}, expected whole numbers from 1 to "
            f"{MAX_SIDE}, the size of its file in pixels. Correct them."
        )
    return int(sides[0]), int(sides[1])


@contextmanager
def located_errors(path: Path, expected: str) -> Iterator[None]:
    """Convert errors about missing keys and wrong types into errors that name the file.

    Raises:
        UnreadableFile: for such an error; it names ``path`` and the ``expected`` format.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except ValueError as error:
        where = "" if str(path) in str(error) else f"{path}: expected {expected}: "
        raise UnreadableFile(where + short(str(error), 1000)) from error
    except KeyError as error:
        raise UnreadableFile(
            f"{path}: expected {expected}, but the key {error} is missing."
        ) from error
    except (AttributeError, IndexError, OSError, OverflowError, TypeError) as error:
        raise UnreadableFile(
            f"{path}: expected {expected}, but a value has the wrong type: {error}."
        ) from error
