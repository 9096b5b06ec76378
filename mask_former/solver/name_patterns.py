"""Patterns of parameter names in configs."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from fnmatch import fnmatchcase
from itertools import accumulate

__all__ = ["lies_below", "matching"]


def lies_below(name: str, pattern: str) -> bool:
    """Check if a shell pattern matches a parameter or a module that contains it.

    ``*`` matches any text, including dots: ``backbone``, ``*.norm?`` and ``*bias`` are patterns.
    """
    return any(fnmatchcase(start, pattern) for start in _starts(name))


def matching(pattern: str, names: Collection[str], key: str) -> list[str]:
    """Return the names of the parameters that a pattern matches; see :func:`lies_below`.

    Args:
        pattern: Pattern of a config.
        names: Names of a model's parameters.
        key: Config key of the pattern, for the error message.

    Raises:
        ValueError: If the pattern matches no name. The message lists similar ones.
    """
    found = [name for name in names if lies_below(name, pattern)]
    if not found:
        known = dict.fromkeys(start for name in names for start in _starts(name))
        near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.5)
        tops = dict.fromkeys(name.partition(".")[0] for name in names)
        hint = f"similar: {', '.join(near)}" if near else f"names start with {', '.join(tops)}"
        raise ValueError(
            f"{key}: {pattern!r} matches no parameter of the model; {hint}. A pattern is the whole "
            "name of a parameter or module, in which * matches any text."
        )
    return found


def _starts(name: str) -> list[str]:
    """Return the prefixes of a name: ``a``, ``a.b`` and ``a.b.c`` for ``a.b.c``."""
    return list(accumulate(name.split("."), "{}.{}".format))
