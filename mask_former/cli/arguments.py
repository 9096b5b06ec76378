"""Arguments that several commands have."""

from __future__ import annotations

import argparse

__all__ = ["add_plugin_argument"]


def add_plugin_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--plugin FILE``, which may be repeated; ``plugins`` of the result lists the files.

    The command passes each to :func:`mask_former.registries.load_plugin` before it reads a config.
    """
    parser.add_argument(
        "--plugin",
        dest="plugins",
        action="append",
        default=[],
        metavar="FILE",
        help="a Python file with parts of your own, imported first; may be repeated "
        "(docs/extend.md)",
    )
