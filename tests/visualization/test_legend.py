"""Legends: every row is drawn completely, in little space."""

from __future__ import annotations

import numpy as np
import pytest

from mask_former.utils.colors import spread_color
from mask_former.visualization.legend import LegendRow, add_legend, draw_legend


def rows(count, name="class"):
    return [
        LegendRow(np.array([[spread_color(i)]], np.uint8), f"{name} {i}", 1 / (i + 1))
        for i in range(count)
    ]


def colors_in(image):
    packed = np.unique(np.asarray(image).reshape(-1, 3).astype(np.int64) @ [256**2, 256, 1])
    return {(c // 256**2, c // 256 % 256, c % 256) for c in packed.tolist()}


@pytest.mark.parametrize("columns", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("count", [1, 5, 20])
def test_every_row_is_drawn_in_any_number_of_columns(count, columns):
    legend = draw_legend(rows(count), text=12, columns=columns)
    assert {spread_color(i) for i in range(count)} <= colors_in(legend)
    lines = -(-count // columns)
    assert legend.height == lines * draw_legend(rows(1), text=12).height
    assert (np.asarray(legend)[:, -3:] == 255).all()  # no text is cut off on the right


def test_columns_do_not_touch():
    one, three = (np.asarray(draw_legend(rows(3), columns=n)) for n in (1, 3))
    height, width = one.shape[0] // 3, one.shape[1]
    assert three.shape == (height, 3 * width, 3)
    for i in range(3):
        np.testing.assert_array_equal(
            three[:, i * width : (i + 1) * width], one[i * height : (i + 1) * height]
        )


def test_percentages_are_rounded_and_tiny_ones_marked():
    swatch = np.zeros((1, 1, 3), np.uint8)
    shares = (1.0, 0.1234, 0.0005, 0.0004)
    percents = [LegendRow(swatch, "", share).percent for share in shares]
    assert percents == ["100.0%", "12.3%", "0.1%", "< 0.1%"]


@pytest.mark.parametrize("size", [(600, 900), (900, 300), (300, 1200), (40, 40), (1, 1)])
@pytest.mark.parametrize("count", [1, 12, 100])
def test_the_image_is_unchanged_and_every_row_is_next_to_it_or_below_it(size, count):
    image = np.full((*size, 3), 7, np.uint8)
    result = add_legend(image, rows(count))
    height, width = size
    assert (result[:height, :width] == 7).all()
    result[:height, :width] = 255
    assert {spread_color(i) for i in range(count)} <= colors_in(result)
    assert (result[-1] == 255).all() and (result[:, -1] == 255).all()


def test_few_rows_are_below_the_image_and_many_in_a_column_next_to_it():
    few, many = (add_legend(np.zeros((400, 400, 3), np.uint8), rows(n)) for n in (2, 22))
    assert few.shape[1] == 400 and few.shape[0] < 450
    assert many.shape[0] == 400 and many.shape[1] < 560


def test_without_rows_there_is_no_legend():
    image = np.zeros((20, 30, 3), np.uint8)
    assert add_legend(image, []) is image
