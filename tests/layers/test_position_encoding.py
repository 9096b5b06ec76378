"""The sine positional encoding equals DETR's."""

import math

import pytest
import torch

from mask_former.layers import sine_position_encoding
from tests.helpers import references


@pytest.mark.parametrize("height, width", [(5, 7), (1, 1), (1, 9), (16, 3)])
@pytest.mark.parametrize("channels", [4, 16, 64])
def test_the_encoding_equals_detrs(height, width, channels):
    encoding = sine_position_encoding(height, width, channels)
    assert encoding.dtype == torch.float32
    expected = references.sine_encoding(height, width, channels).float()
    torch.testing.assert_close(encoding, expected, rtol=0, atol=1e-5)


def test_another_temperature_changes_all_frequencies_but_the_first():
    encoding = sine_position_encoding(4, 6, 16, temperature=20.0)
    expected = references.sine_encoding(4, 6, 16, temperature=20.0).float()
    torch.testing.assert_close(encoding, expected, rtol=0, atol=1e-5)
    assert torch.equal(encoding[:2], sine_position_encoding(4, 6, 16)[:2])


def test_the_first_half_encodes_rows_and_the_second_columns_up_to_two_pi():
    encoding = sine_position_encoding(4, 6, 8)
    assert (encoding[:4] == encoding[:4, :, :1]).all() and (encoding[4:] == encoding[4:, :1]).all()
    assert encoding[0, :, 0].tolist() == pytest.approx(
        [math.sin(2 * math.pi * y / 4) for y in (1, 2, 3, 4)], abs=1e-5
    )
    assert encoding[5, 0].tolist() == pytest.approx(
        [math.cos(2 * math.pi * x / 6) for x in (1, 2, 3, 4, 5, 6)], abs=1e-5
    )


def test_the_encoding_depends_only_on_the_size():
    first = sine_position_encoding(5, 7, 8)
    sine_position_encoding(7, 5, 8), sine_position_encoding(5, 7, 16)
    assert torch.equal(sine_position_encoding(5, 7, 8), first)


@pytest.mark.parametrize("channels", [2, 6, 30])
def test_channels_not_divisible_by_4_are_an_error_that_names_the_keys(channels):
    text = rf"multiple of 4 channels, got {channels}; .*MODEL\.MASK_FORMER\.HIDDEN_DIM"
    with pytest.raises(ValueError, match=text):
        sine_position_encoding(3, 3, channels)
