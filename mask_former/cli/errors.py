"""Errors that end a command before it begins, with one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import yaml

from mask_former.utils.errors import one_line

__all__ = ["SetupError", "setting_up"]


class SetupError(Exception):
    """The command cannot begin; the message gives the reason in one line."""


@contextmanager
def setting_up() -> Iterator[None]:
    """Turn the errors of a wrong option, config or checkpoint into a :class:`SetupError`."""
    try:
        yield
    except (OSError, KeyError, ValueError, ImportError, AssertionError, yaml.YAMLError) as error:
        # AssertionError: yacs raises it for an unknown KEY
        raise SetupError(one_line(error)) from error
