"""Reading JSONs of COCO's formats, and naming the file in whatever is wrong with its content."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["naming_mistakes", "read_json"]


def read_json(path: Path, expected: str) -> dict[str, Any]:
    """The content of a JSON of COCO's.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: it is no JSON, or one without `images` and `annotations`; `expected` is the
            format that the message names.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): prepare the dataset again.") from error
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not content.get(key):
            raise ValueError(f"{path}: expected {expected}, but `{key}` is missing.")
    return content


@contextmanager
def naming_mistakes(path: Path, expected: str) -> Iterator[None]:
    """What goes wrong inside for want of a key or for a value of another type, with the file.

    Raises:
        ValueError: names ``path`` and what it was ``expected`` to hold.
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
