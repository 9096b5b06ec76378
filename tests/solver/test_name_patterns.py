"""Patterns match whole names of parameters and of the modules they are in."""

from __future__ import annotations

import pytest

from mask_former.solver.name_patterns import matching

NAMES = ["backbone.stem.conv1.weight", "backbone.norm2.bias", "backbone_two.weight", "head.bias"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("backbone", NAMES[:2]),
        ("backbone.*", NAMES[:2]),
        ("backbone*", NAMES[:3]),
        ("backbone.stem", NAMES[:1]),
        ("*.norm?", NAMES[1:2]),
        ("*.bias", [NAMES[1], NAMES[3]]),
        ("head.bias", NAMES[3:]),
        ("*", NAMES),
    ],
)
def test_a_pattern_is_a_whole_name_of_a_parameter_or_a_module(pattern, expected):
    assert matching(pattern, NAMES, "KEY") == expected


@pytest.mark.parametrize("pattern", ["bias", "backbon", "stem", "Backbone", "backbone.norm1"])
def test_what_matches_nothing_is_an_error(pattern):
    with pytest.raises(ValueError, match=f"KEY: '{pattern}' matches no parameter"):
        matching(pattern, NAMES, "KEY")


def test_the_error_tells_near_names_and_else_the_first():
    with pytest.raises(ValueError, match=r"similar: .*backbone\.norm2"):
        matching("backbone.norm1", NAMES, "KEY")
    with pytest.raises(ValueError, match="names start with backbone, backbone_two, head"):
        matching("???", NAMES, "KEY")
