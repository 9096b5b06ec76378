"""The glossary of forbidden words holds in every file of the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import language
from tests.helpers.language import ALLOWED, GLOSSARY, RULES, Prose, prose_of
from tests.helpers.paths import ROOT

FORBIDDEN = [
    "a picture of it",
    "Masks are enlarged first.",
    "near the truth",
    "a position code",
    "the query that answers for a target",
    "Both run in turns.",
    "the folder beside it",
    "Wait, for it is slow.",
    "built anew",
    "the command that mends it",
    "as the log says",
    "The file is not there.",
    "This is no checkpoint.",
    "layers that rest",
    "train on own data",
    "where the model is sure",
    "keep their places in a batch",
    "is whole or not there",
]
PLAIN = [
    "an image",
    "the ground truth of an image, ground-truth masks",
    "Make sure that the file exists.",
    "There is no such key; there are no more images, and that is no longer true.",
    "the rest of the weights, and the restored ones",
    "besides that",
    "a name for it, for example",
    "written in place, in one place",
    "recommended, emended, amendments",
    "pictured",
]


def findings(text: str, is_docstring: bool = False) -> list[str]:
    return list(language.findings("page.md", Prose(1, text, is_docstring)))


@pytest.mark.parametrize("file", [str(f.relative_to(ROOT)) for f in language.files_below(["."])])
def test_no_file_has_a_forbidden_word(file: str) -> None:
    assert not (found := language.findings_in(ROOT / file)), "\n".join(found)


@pytest.mark.parametrize("text", FORBIDDEN)
def test_a_forbidden_word_is_found_with_what_to_write_instead(text: str) -> None:
    (finding,) = findings(text)
    assert finding.startswith("page.md:1: ")
    assert finding.rpartition("; write: ")[2] in GLOSSARY.values()


def test_every_row_of_the_glossary_has_an_example() -> None:
    assert all(any(rule.search(text) for text in FORBIDDEN) for rule, _ in RULES)


@pytest.mark.parametrize("text", PLAIN)
def test_plain_english_passes(text: str) -> None:
    assert findings(text) == []


@pytest.mark.parametrize("word", ["What", "Which", "Where", "Whether", "How", "Of", "Those"])
def test_a_docstring_starts_with_its_noun_or_an_imperative(word: str) -> None:
    (finding,) = findings(f"{word} a checkpoint holds.", is_docstring=True)
    assert f"starts with {word!r}" in finding
    assert findings(f"{word} a checkpoint holds.") == []
    assert findings(f"Content of a checkpoint. {word} it holds.", is_docstring=True) == []


CODE = '''
"""The truth."""
SIZE = 3  # enlarged
"""Rests."""

def picture_of(name):  # this is
    # not there
    table = {"picture": 1}
    raise ValueError(f"{name} is no file of the table")
'''


def test_docstrings_comments_messages_and_names_of_code_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.py"
    file.write_text(CODE)
    found = [line for prose in prose_of(file) for line in language.findings("a.py", prose)]
    assert sorted(line.partition("; ")[0].split(" in ")[0] for line in found) == [
        "a.py:2: 'truth'",
        "a.py:3: 'enlarged'",
        "a.py:4: 'Rests'",
        "a.py:6: 'is not there'",  # across a line break
        "a.py:6: 'picture'",  # the name of the function, but no key of a dict
        "a.py:9: 'is no '",
    ]


def test_pages_are_read_whole_and_settings_by_their_comments(tmp_path: Path) -> None:
    page, config = tmp_path / "a.md", tmp_path / "a.yaml"
    page.write_text("# A page\n\nThe file is\nnot there.\n\n```\npython picture.py\n```\n")
    config.write_text("picture: truth  # built anew\n")
    assert [p.line for p in prose_of(page) if findings(p.text)] == [3, 6]
    assert [p.text for p in prose_of(config) if findings(p.text)] == ["built anew"]


@pytest.mark.parametrize(("file", "phrase"), ALLOWED)
def test_every_exception_is_still_needed(file: str, phrase: str) -> None:
    assert phrase in " ".join((ROOT / file).read_text(encoding="utf-8").split())
    assert findings(phrase)


def test_an_exception_is_for_one_phrase_of_one_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALLOWED, ("page.md", "“the picture”"), "a quotation")
    assert findings("“the picture”") == []
    assert len(findings("the picture, “the picture”")) == 1
    assert list(language.findings("other.md", Prose(1, "“the picture”")))
