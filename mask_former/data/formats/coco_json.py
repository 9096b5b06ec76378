"""Read JSONs of COCO's formats, and name the file in every error about its content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["naming_mistakes", "read_json"]


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """Read a JSON in one of COCO's formats.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is not a JSON, or has no ``images`` or ``annotations``; the message names
            the ``expected`` format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not a JSON ({error}): restore the file.") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not content.get(key):
            raise ValueError(f"{path}: expected {expected}, but `{key}` is missing.")
    return content


@contextmanager
def naming_mistakes(path: Path, expected: str) -> Iterator[None]:
    """Convert errors about missing keys and wrong types into one that names the file.

    Raises:
        ValueError: if the body raises; the message names ``path`` and the ``expected`` format.
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
            f"{path}: expected {expected}, but a value is of another type: {error}."
        ) from error
