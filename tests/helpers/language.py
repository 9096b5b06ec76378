"""Lint for the glossary: find words that the project does not use, in code and on pages.

``python -m tests.helpers.language [PATH ...]`` lists the findings of files or folders.
``tests/test_language.py`` allows none in the checkout.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT

GLOSSARY: dict[str, str] = {
    r"pictures?": "image",
    r"enlarg(e|es|ed|ing|ements?)": "upsample, resize",
    r"(?<!ground )(?<!ground-)truths?": "ground truth",
    r"position codes?": "positional encoding",
    r"answer(s|ed|ing)? for": "is matched to",
    r"in turns": "interleaved",
    r"beside": "next to, compared with, besides",
    r", for (it|they|he|she|we|you|this|that|these|those|there|nothing|nobody) "
    r"(is|are|was|were|has|have|had|do|does|did|can|may|must|will|would|need\w*)": "because",
    r"anew": "again",
    r"mend(s|ed|ing)?": "fix, repair",
    r"says|said|tells|told|speaks|spoken": "returns, reports, logs, outputs",
    r"(?<!there )(is|are|was|were|be|been) (not )?there": "exists, is missing",
    r"(?<!there )(is|are|was|were) no (?!(longer|more|less|fewer|better|worse)\b)": "is not a",
    r"(that|which|and|shall|may|must|lets?) rest(?! of)|rests|resting": "is frozen, keeps fixed",
    r"own data": "your own dataset, custom dataset",
    r"(?<!make )(?<!makes )(?<!made )(?<!making )sure(r|st|ly)?": "confident",
    r"places? (in|of) (a|an|the|its|their|each) (batch|list|tuple|sequence|order)": "index",
    r"whole or not (there|at all)": "atomic",
}
"""Regular expressions of forbidden words, each with what to write instead."""

FIRST_WORDS = re.compile(r"(What|Which|Where|Whether|How|Of|Those|That|Whose|Say|Tell)\b")
"""Words that no docstring may start with; write an imperative, or a noun phrase with its noun."""

ALLOWED: dict[tuple[str, str], str] = {}
"""Exceptions: (file, exact phrase) -> reason."""

PAGES = {".md", ".rst"}
COMMENTED = {".yaml", ".yml", ".toml", ".cfg", ".sh"}
"""Suffixes of files in which comments follow a #."""
SKIPPED = {
    ".venv",
    ".git",
    "site",
    "build",
    "dist",
    "output",
    ".pytest_cache",
    ".mypy_cache",
    ".ruff_cache",
}
"""Folders of the checkout without sources."""
QUOTING = {"tests/helpers/language.py", "tests/test_language.py", "CHANGELOG.md"}
"""Files that quote the forbidden words, and the changelog, which quotes old names and texts."""
RULES = [(re.compile(rf"\b(?:{words})\b", re.IGNORECASE), use) for words, use in GLOSSARY.items()]


class Prose(NamedTuple):
    """A piece of text, its white space collapsed, and the number of its first line."""

    line: int
    text: str
    is_docstring: bool = False


def comments_of(lines: Iterator[tuple[int, str]]) -> Iterator[Prose]:
    """Join the comments on consecutive lines, so that a phrase is found across a line break."""
    start, end, words = 0, -1, ""
    for line, comment in lines:
        text = comment.strip("#: \t")
        if line == end + 1:
            end, words = line, f"{words} {text}"
            continue
        yield Prose(start, words)
        start, end, words = line, line, text
    yield Prose(start, words)


def string_of(node: ast.AST) -> str | None:
    """Return the text of a string or an f-string, ``{}`` in place of each value."""
    if isinstance(node, ast.JoinedStr):
        return "".join(
            part.value if isinstance(part, ast.Constant) else "{}" for part in node.values
        )
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def prose_of_code(source: str) -> Iterator[Prose]:
    """Yield docstrings, strings of three words or more, names of functions, and comments."""
    tree = ast.parse(source)
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
             for part in ast.walk(node) if part is not node}  # fmt: skip
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        text = string_of(node)
        if text is not None and id(node) not in parts:
            if id(node) in docstrings or len(text.split()) >= 3:
                yield Prose(node.lineno, text, id(node) in docstrings)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield Prose(node.lineno, node.name.replace("_", " "))
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    yield from comments_of((t.start[0], t.string) for t in tokens if t.type == tokenize.COMMENT)


def prose_of_page(source: str) -> Iterator[Prose]:
    """Yield the paragraphs of a page, its code included."""
    line = 1
    for paragraph in re.split(r"(\n\s*\n)", source):
        yield Prose(line, paragraph)
        line += paragraph.count("\n")


def prose_of(file: Path) -> Iterator[Prose]:
    """Yield all prose of a file."""
    source = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        yield from prose_of_code(source)
    elif file.suffix in PAGES:
        yield from prose_of_page(source)
    else:
        lines = (line.partition("#") for line in source.splitlines())
        yield from comments_of((i, c) for i, (_, mark, c) in enumerate(lines, start=1) if mark)


def findings(name: str, prose: Prose) -> Iterator[str]:
    """Yield one line for each forbidden word, with what to write instead.

    Args:
        name: path of the file, relative to the checkout.
    """
    text = re.sub(r"\s+", " ", prose.text).strip()
    for (file, phrase), _ in ALLOWED.items():
        text = text.replace(phrase, "") if file == name else text
    if prose.is_docstring and (match := FIRST_WORDS.match(text)):
        yield f"{name}:{prose.line}: a docstring starts with {match[0]!r}: name the noun first"
    for rule, use in RULES:
        for match in rule.finditer(text):
            around = text[max(match.start() - 25, 0) : match.end() + 25]
            yield f"{name}:{prose.line}: {match[0]!r} in …{around}…; write: {use}"


def files_below(paths: Iterable[str]) -> list[Path]:
    """List the files with prose among these paths and below them."""
    roots = [ROOT / path for path in paths]
    found = {file for root in roots for file in ([root] if root.is_file() else root.rglob("*"))}
    return sorted(
        file
        for file in found
        if (file.suffix in {".py"} | PAGES | COMMENTED or file.name == "Makefile")
        and not SKIPPED & set(file.relative_to(ROOT).parts)
        and file.relative_to(ROOT).as_posix() not in QUOTING
        and file.is_file()
    )


def findings_in(file: Path) -> list[str]:
    """List the findings of a file."""
    name = file.relative_to(ROOT).as_posix()
    return [finding for prose in prose_of(file) for finding in findings(name, prose)]


if __name__ == "__main__":
    paths = [str(Path(path).resolve()) for path in sys.argv[1:]]
    for file in files_below(paths or ["."]):
        for finding in findings_in(file):
            print(finding)
