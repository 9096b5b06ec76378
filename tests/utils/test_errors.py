"""Texts of errors: without quotes, on one line, and with shortened lists of values."""

from __future__ import annotations

import numpy as np
import pytest

from mask_former.utils.errors import few, message_of, one_line, short


@pytest.mark.parametrize(
    ("error", "text"), [(KeyError("a\n b"), "a\n b"), (ValueError("a\n b"), "a\n b")]
)
def test_the_message_of_an_error_is_its_text_without_quotes(error: Exception, text: str) -> None:
    assert message_of(error) == text
    assert one_line(error) == "a b"


def test_an_error_without_text_is_named_by_its_type() -> None:
    assert one_line(TimeoutError()) == "TimeoutError"


def test_long_lists_are_shortened_with_a_count() -> None:
    assert few([]) == "[]"
    assert few([1, "a", [2]]) == "[1, 'a', [2]]"
    assert few(range(8)) == "[0, 1, 2, 3, 4, 5, 6, 7]"
    assert few(range(11), most=2) == "[0, 1] and 9 more"


def test_numpy_numbers_are_written_as_plain_numbers() -> None:
    assert few(np.array([1.5, 2])) == "[1.5, 2.0]" and few({np.uint8(7)}) == "[7]"


def test_an_integer_of_any_size_has_a_text() -> None:
    assert short(1 << 200_000) == "0x1" + "0" * 37 + "…"
    assert few([1 << 200_000, 2]) == f"[{short(1 << 200_000)}, 2]"
