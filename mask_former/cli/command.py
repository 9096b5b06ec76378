"""Parser, plug-ins, errors and exit code: the parts that all commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import yaml

from mask_former.utils.errors import is_out_of_memory, one_line, short

__all__ = [
    "FAILURES",
    "SetupError",
    "add_plugin_argument",
    "exit_code",
    "make_parser",
    "setting_up",
]

FAILURES = (ImportError, KeyError, OSError, ValueError)
"""Exceptions that a wrong option, config or file raises."""


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Create a parser whose help starts with ``description``, a module's docstring, unwrapped."""
    return argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_plugin_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin FILE``, which may be repeated; the parsed ``plugins`` is the list of files.

    The command passes them to :func:`mask_former.registries.load_plugins` before it reads a config.
    """
    parser.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with your own components, imported first; may be repeated "
        "(docs/extend.md)",
    )


def exit_code(command: str, run: Callable[[], int]) -> int:
    """Run a command.

    Args:
        command: Name of the command, at the start of the error message.
        run: The command itself; returns the exit code.

    Returns:
        The exit code; 1 after an exception of :data:`FAILURES`, whose message is printed to stderr
        as one line.
    """
    try:
        return run()
    except FAILURES as error:
        print(f"{command}: {one_line(error)}", file=sys.stderr)
        return 1


class SetupError(Exception):
    """Error that prevents a command from starting; the message gives the reason in one line."""


@contextmanager
def setting_up() -> Iterator[None]:
    """Turn the errors of a wrong option, config or checkpoint into a :class:`SetupError`."""
    try:
        yield
    except (*FAILURES, AssertionError, yaml.YAMLError) as error:
        # yacs raises AssertionError for an unknown key
        raise SetupError(one_line(error)) from error
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise SetupError(
            f"there is not enough memory ({short(one_line(error), 200)}): a size in the config is "
            "too large for this machine, such as MODEL.MASK_FORMER.NUM_OBJECT_QUERIES, HIDDEN_DIM "
            "or INPUT.MIN_SIZE_TEST."
        ) from error
