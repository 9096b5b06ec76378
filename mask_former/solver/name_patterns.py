"""Parts of a model by patterns of their names, as configs give them."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from fnmatch import fnmatchcase
from itertools import accumulate

__all__ = ["lies_below", "matching"]


def lies_below(name: str, pattern: str) -> bool:
    """Whether a shell pattern matches ``name`` or a module that it is a part of.

    ``*`` stands for anything, dots too: ``backbone``, ``*.norm?`` and ``*bias`` are patterns.
    """
    return any(fnmatchcase(start, pattern) for start in _starts(name))


def matching(pattern: str, names: Collection[str], key: str) -> list[str]:
    """The names that :func:`lies_below` ``pattern``.

    Args:
        pattern: of a config.
        names: of a model's parameters.
        key: the config key, for the message.

    Raises:
        ValueError: if there are none; tells names that are near.
    """
    found = [name for name in names if lies_below(name, pattern)]
    if not found:
        known = dict.fromkeys(start for name in names for start in _starts(name))
        near = difflib.get_close_matches(pattern, known, n=4, cutoff=0.5)
        tops = dict.fromkeys(name.partition(".")[0] for name in names)
        hint = f"near it: {', '.join(near)}" if near else f"the names begin with {', '.join(tops)}"
        raise ValueError(
            f"{key}: {pattern!r} matches no parameter of the model; {hint}. A pattern is the whole "
            "name of a parameter or module, where * stands for anything."
        )
    return found


def _starts(name: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c`` of ``a.b.c``."""
    return list(accumulate(name.split("."), "{}.{}".format))
