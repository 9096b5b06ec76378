"""Colours that can be told apart, and text that can be read on them."""

from __future__ import annotations

import numpy as np
import pytest

from mask_former.data.datasets.table import TABLES, read_table
from mask_former.utils.colors import (
    PALETTES,
    colorblind_color,
    instance_color,
    spread_color,
    text_color,
)

COLORS = [(70, 130, 180), (128, 64, 128), (0, 0, 142)]
TABLE_NAMES = sorted(path.stem for path in TABLES.glob("*.json"))


def luminance(color) -> float:
    """WCAG 2's relative luminance."""
    total = 0.0
    for channel, weight in zip(color, (0.2126, 0.7152, 0.0722), strict=True):
        c = channel / 255
        total += weight * (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4)
    return total


def contrast(one, other) -> float:
    """WCAG 2's contrast ratio, 1 … 21."""
    light, dark = sorted([luminance(one), luminance(other)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


# Text


def test_text_can_be_read_on_every_colour():
    steps = [*range(0, 256, 15), 117, 118, 119]
    for background in np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3).tolist():
        assert contrast(background, text_color(background)) >= 4.5, background


@pytest.mark.parametrize("palette", PALETTES)
@pytest.mark.parametrize("table", TABLE_NAMES)
def test_it_can_be_read_on_the_colours_of_every_table_and_on_their_instances(table, palette):
    make = PALETTES[palette]
    categories = read_table(table).categories
    of_table = [tuple(c.color) for c in categories if c.color is not None]
    colors = of_table if make is None else [make(i) for i in range(len(categories))]
    for color in colors:
        for index in range(20):
            shade = instance_color(color, index)
            assert contrast(shade, text_color(shade)) >= 4.5, (color, index)


# Instances


def test_the_first_instance_has_the_colour_of_its_class_and_the_others_have_other_ones():
    for color in [*COLORS, (0, 0, 0), (128, 128, 128), (255, 255, 255), (220, 20, 60)]:
        shades = [instance_color(color, i) for i in range(12)]
        assert shades[0] == color
        assert all(0 <= channel <= 255 for shade in shades for channel in shade)
        for i, one in enumerate(shades):
            for other in shades[:i]:
                assert np.abs(np.subtract(one, other)).max() >= 5, (color, one, other)


# Palettes


@pytest.mark.parametrize("make", [spread_color, colorblind_color])
def test_the_colours_of_a_palette_differ(make):
    colors = [make(i) for i in range(150)]
    assert len(set(colors)) == 150
    assert all(0 <= channel <= 255 for color in colors for channel in color)


def simulate(color, kind):
    """What a dichromat sees, by the matrices of Viénot, Brettel and Mollon (1999) on linear RGB."""
    matrix = {
        "protan": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
        "deutan": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
    }[kind]
    linear = (np.array(color) / 255) ** 2.2
    return 255 * np.clip(np.array(matrix) @ linear, 0, 1) ** (1 / 2.2)


def closest(colors) -> float:
    """The distance of the two most alike, in RGB."""
    points = np.array(colors, float)
    distance = np.linalg.norm(points[:, None] - points, axis=-1)
    return float(distance[np.triu_indices(len(points), 1)].min())


@pytest.mark.parametrize("kind", ["protan", "deutan"])
def test_the_colours_for_the_colour_blind_stay_apart_for_them(kind):
    assert closest([simulate(colorblind_color(i), kind) for i in range(8)]) > 35
    assert closest([simulate(colorblind_color(i), kind) for i in range(16)]) > 15
