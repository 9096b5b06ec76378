"""No text of a stranger forges a record of the log or commands the terminal."""

from __future__ import annotations

import io
import logging

import pytest
from tqdm.contrib.logging import logging_redirect_tqdm

from mask_former.utils.errors import one_line, printable
from mask_former.utils.logs import escape_records

HOSTILE = "a\n[11/28 07:00:00 demo]: 999 images done\r\x1b[2J\x9b31m\u202egnp\u2028.png"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Größe 木 1\u00a0m.png", "Größe 木 1\u00a0m.png"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31mred\x07\x7f\x9b", r"\x1b[31mred\x07\x7f\x9b"),
        ("\u202egnp\u2028\udcff", r"\u202egnp\u2028\udcff"),
    ],
)
def test_control_characters_are_escaped_and_letters_stay(text: str, shown: str) -> None:
    assert printable(text) == shown and printable(shown) == shown


def test_the_line_of_an_error_is_one_that_a_terminal_shows_as_it_is() -> None:
    assert one_line(ValueError(HOSTILE)).isprintable()


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(stream: io.StringIO) -> logging.Logger:
    made = logging.Logger("test")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("\x1b[32m[time]\x1b[0m %(levelname)s: %(message)s"))
    made.addHandler(handler)
    escape_records(made)
    escape_records(made)  # a second call changes nothing
    return made


START = "\x1b[32m[time]\x1b[0m "


def test_only_the_formatters_own_colours_reach_the_terminal(logger, stream) -> None:
    logger.warning("%s: damaged", HOSTILE)
    logger.warning(f"{HOSTILE}: damaged")
    text = stream.getvalue()
    assert text.count("\x1b") == 4 and text.count(START) == 2
    assert text.replace(START, "").replace("\n", "").isprintable()


def test_no_line_but_a_records_first_starts_like_a_record(logger, stream) -> None:
    logger.error(HOSTILE)
    first, *others = stream.getvalue().splitlines()
    assert first == f"{START}ERROR: a" and others and all(line[0] == " " for line in others)


def test_a_table_keeps_its_lines(logger, stream) -> None:
    logger.warning("Results:\n| a | b |\n\n  indented\n|---|")
    lines = stream.getvalue().splitlines()
    assert lines[1:] == ["  | a | b |", "", "  indented", "  |---|"]


def test_a_traceback_is_escaped_too(logger, stream) -> None:
    try:
        raise ValueError(HOSTILE)
    except ValueError:
        logger.exception("failed")
    text = stream.getvalue().removeprefix(START)
    assert "\x1b" not in text and "\n[11/28" not in text and "ValueError: a" in text


def test_records_stay_escaped_next_to_a_progress_bar(logger, stream, monkeypatch) -> None:
    monkeypatch.setattr("sys.stderr", stream)  # only handlers of the terminal are redirected
    with logging_redirect_tqdm([logger]):
        logger.warning(HOSTILE)
    assert stream.getvalue().count("\x1b") == 2 and "\n[11/28" not in stream.getvalue()
