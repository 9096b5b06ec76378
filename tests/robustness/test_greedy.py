"""Files that would take all memory or time are refused by their name, and start no program."""

from __future__ import annotations

import pytest

from tests.robustness.greedy import KINDS, problems_of


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_bytes_take_no_memory_and_no_time_and_are_refused_by_name(kind, tmp_path):
    assert not problems_of(kind, tmp_path)
