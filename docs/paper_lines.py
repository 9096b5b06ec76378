"""The line numbers of docs/paper_to_code.md, found anew whenever the site is built.

A row of its tables ends in a piece of code and the file that has it; the piece has to stand on
exactly one line of that file.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "paper_to_code.md"
ROW = re.compile(r"`([^`]+)` \| `([^`]+\.(?:py|json))` \|$", re.MULTILINE)


def line_of(fragment: str, file: str) -> int:
    """The line (from 1) of ``file`` (below the checkout) that has the piece of code.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no line has it, or several have.
    """
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    found = [number for number, line in enumerate(lines, start=1) if fragment in line]
    if len(found) != 1:
        where = f"lines {found} have" if found else "no line has"
        raise ValueError(
            f"{PAGE.name}: in {file} {where} `{fragment}`; expected one. Take a piece of code that "
            "stands on one line alone."
        )
    return found[0]


def with_lines(text: str) -> str:
    """The page with ``file:line`` in the place of each file."""

    def number(row: re.Match[str]) -> str:
        fragment, file = row.groups()
        return f"`{fragment}` | `{file}:{line_of(fragment, file)}` |"

    return ROW.sub(number, text)
