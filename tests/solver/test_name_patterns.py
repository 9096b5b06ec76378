"""Patterns match complete names of parameters, or of modules that contain them."""

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
def test_a_pattern_matches_complete_names_of_parameters_and_modules(pattern, expected):
    assert matching(pattern, NAMES, "KEY") == expected


@pytest.mark.parametrize("pattern", ["bias", "backbon", "stem", "Backbone", "backbone.norm1"])
def test_a_pattern_without_a_match_is_an_error(pattern):
    with pytest.raises(ValueError, match=f"KEY: '{pattern}' matches no parameter"):
        matching(pattern, NAMES, "KEY")


def test_the_error_suggests_similar_names_or_else_the_first_ones():
    with pytest.raises(ValueError, match=r"similar: .*backbone\.norm2"):
        matching("backbone.norm1", NAMES, "KEY")
    with pytest.raises(ValueError, match="names start with backbone, backbone_two, head"):
        matching("???", NAMES, "KEY")
