"""Texts of errors: the message of an exception, and values in a message."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Iterable
from typing import Any

__all__ = ["few", "is_out_of_memory", "message_of", "one_line", "printable", "short"]


class _Repr(reprlib.Repr):
    """``reprlib.Repr`` that writes integers of any size; Python refuses more than 4,300 digits."""

    def repr_int(self, x: int, level: int) -> str:
        return super().repr_int(x, level) if x.bit_length() < 1000 else hex(x)[:40] + "…"


_BOUNDED = _Repr()
_BOUNDED.maxstring = _BOUNDED.maxother = 200


def message_of(error: BaseException) -> str:
    """Return the text of an error; ``str`` would put quotes around that of a ``KeyError``."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks, or its type if it has no text."""
    return printable(" ".join(message_of(error).split())) or type(error).__name__


def printable(text: str) -> str:
    r"""Return a text in one line that a terminal shows as it is: ``\n``, ``\x1b`` … are escaped.

    Names of files and classes come from strangers: a line break in one would forge a line of the
    log, an escape sequence would command the terminal.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or unicodedata.category(c) == "Zs" else _escaped(c) for c in text
    )


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for an error of Python's, numpy's or torch's allocator."""
    texts = ("allocate memory", "out of memory", "calculation overflowed")
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


def short(value: Any, most: int = 80) -> str:
    """Write a value as text of at most ``most`` characters, however large or nested it is."""
    text = value if isinstance(value, str) else _BOUNDED.repr(value)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def few(values: Iterable[Any], most: int = 8) -> str:
    """Format values as a list that shows only the first ``most`` of them."""
    listed = [value.item() if hasattr(value, "item") else value for value in values]
    text = f"[{', '.join(map(_BOUNDED.repr, listed[:most]))}]"
    return f"{text} and {len(listed) - most} more" if len(listed) > most else text
