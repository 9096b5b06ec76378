"""Logs whose records nobody can forge: names of files and classes come from strangers."""

from __future__ import annotations

import copy
import logging

from .errors import printable

__all__ = ["escape_records"]


def escape_records(logger: logging.Logger) -> None:
    """Let all handlers of a logger escape the control characters of each record.

    A record may have several lines; those after the first start with a space, so that no line of a
    file's name looks like a record of its own.
    """
    for handler in logger.handlers:
        if not isinstance(handler.formatter, _EscapingFormatter):
            handler.setFormatter(_EscapingFormatter(handler.formatter or logging.Formatter()))


class _EscapingFormatter(logging.Formatter):
    """A formatter around another one, which adds time, level and colours to the escaped text.

    A filter of the handler would not do: tqdm's redirection of logs takes over formatters only.
    """

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)
        record.msg, record.args = _escaped(record.getMessage()), None
        if record.exc_info:
            record.exc_text = _escaped(self._inner.formatException(record.exc_info))
        return self._inner.format(record)


def _escaped(text: str) -> str:
    first, *others = map(printable, text.expandtabs().split("\n"))
    return "\n".join([first, *(line if line[:1] in ("", " ") else f"  {line}" for line in others)])
