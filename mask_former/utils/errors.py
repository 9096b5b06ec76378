"""What an exception says, for the one line that a command ends with."""

from __future__ import annotations

__all__ = ["message_of"]


def message_of(error: BaseException) -> str:
    """The text of an error; ``str`` of a ``KeyError`` would be its text in quotes."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error)


def one_line(error: BaseException) -> str:
    """The same without line breaks; the error's type where it says nothing."""
    return " ".join(message_of(error).split()) or type(error).__name__
