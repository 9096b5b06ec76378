"""The pages of the documentation, and the blocks of code on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT

PAGES = sorted(
    path
    for pattern in (
        *("*.md", "docs/**/*.md", "model_zoo/*.md"),
        *("datasets/README.md", "tests/golden/README.md"),
    )
    for path in ROOT.glob(pattern)
)
"""The pages of the site."""

FENCE = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block of code on a page."""

    page: str
    language: str
    text: str


def name_of(page: Path) -> str:
    """Return the path of a page relative to the checkout."""
    return str(page.relative_to(ROOT))


def blocks_of(page: Path) -> list[Block]:
    """List the fenced blocks of a page."""
    fences = FENCE.findall(page.read_text(encoding="utf-8"))
    return [Block(name_of(page), language, text) for _, language, text in fences]


def blocks(language: str) -> list[Block]:
    """List the fenced blocks of all pages that are marked with this language."""
    return [block for page in PAGES for block in blocks_of(page) if block.language == language]


def text_of(page: Path) -> str:
    """Return the text of a page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))
