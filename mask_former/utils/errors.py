"""Texts of exceptions, for the line with which a command ends."""

from __future__ import annotations

__all__ = ["message_of", "one_line"]


def message_of(error: BaseException) -> str:
    """Return the text of an error; ``str`` would put that of a ``KeyError`` in quotes."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks, or its type if it has no text."""
    return " ".join(message_of(error).split()) or type(error).__name__
