"""Add line numbers to docs/paper_to_code.md whenever the site is built.

A row of the page's tables ends with a piece of code and the file that contains it; the piece has
to occur on exactly one line of that file.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper_to_code.md"
ROW = re.compile(r"`([^`]+)` \| `([^`]+\.(?:py|json))` \|$", re.MULTILINE)


def line_of(fragment: str, file: str) -> int:
    """Return the number (from 1) of the line that contains a piece of code.

    Args:
        fragment: the piece of code.
        file: path relative to the checkout.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: no line or more than one line contains the piece of code.
    """
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if fragment in line]
    if len(found) != 1:
        where = f"lines {found} have" if found else "no line has"
        raise ValueError(
            f"{PAGE.name}: in {file} {where} `{fragment}`; expected one. Choose a piece of code "
            "that occurs on one line only."
        )
    return found[0]


def with_lines(text: str) -> str:
    """Return the text of the page with ``file:line`` in place of each file."""

    def number(row: re.Match[str]) -> str:
        fragment, file = row.groups()
        return f"`{fragment}` | `{file}:{line_of(fragment, file)}` |"

    return ROW.sub(number, text)
