"""Read JSON files in COCO's formats, and name the file in every error about its content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["located_errors", "read_json"]


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON file in one of COCO's formats.

    Args:
        path: the file.
        expected: name of the format, for error messages.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a JSON file, or has no ``images`` or ``annotations``.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file ({error}): restore it.") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not content.get(key):
            raise ValueError(f"{path}: expected {expected}, but `{key}` is missing.")
    return content


@contextmanager
def located_errors(path: Path, expected: str) -> Iterator[None]:
    """Convert errors about missing keys and wrong types into errors that name the file.

    Raises:
        ValueError: for such an error; the message names ``path`` and the ``expected`` format.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except ValueError as error:
        if str(path) in str(error):
            raise
        raise ValueError(f"{path}: expected {expected}: {error}") from error
    except KeyError as error:
        raise ValueError(f"{path}: expected {expected}, but the key {error} is missing.") from error
    except (AttributeError, IndexError, OSError, OverflowError, TypeError) as error:
        raise ValueError(
            f"{path}: expected {expected}, but a value has the wrong type: {error}."
        ) from error
