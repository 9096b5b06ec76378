"""Each mistake of the troubleshooting page gets the message that the page lists."""

from __future__ import annotations

import re

import pytest

from tests.helpers import planting as p
from tests.helpers.planted_mistakes import MISTAKES, PAGE, SECTIONS, page

pytestmark = pytest.mark.usefixtures("restored_catalogs")


def message_of(mistake, folder):
    """Plant the mistake; return the message of its error, or its warnings."""
    if mistake.error is None:
        with p.warnings() as found:
            mistake.plant(folder)
        return "\n".join(found)
    with pytest.raises(mistake.error) as caught:
        mistake.plant(folder)
    return str(caught.value.args[0])


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_its_message(name, tmp_path):
    mistake = MISTAKES[name]
    pattern = ".*".join(re.escape(part) for part in mistake.message.split("…"))
    message = message_of(mistake, tmp_path)
    assert re.fullmatch(pattern, message, re.DOTALL), message


def test_at_least_30_mistakes_have_distinct_names():
    assert len(MISTAKES) == sum(len(section) for section in SECTIONS.values()) >= 30


def test_the_documented_page_matches_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m tests.helpers.planted_mistakes"
    )
