"""Bool masks read at points: packed corners, copies in fp32, and a loop over the four pixels."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mask_former.ops import reference_ops
from mask_former.ops.mask_points import CornerMasks, mask_points_reference, mask_reader
from tests.helpers.core_cases import LargestTensor, random_masks

HEIGHT, WIDTH = 5, 7


def masks_and_points(count: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return masks N×H×W and 40 points, the first of which are the corners of the image."""
    masks = random_masks(count, (HEIGHT, WIDTH), seed) > 0
    points = torch.rand(40, 2, generator=torch.Generator().manual_seed(seed))
    points[:4] = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    return masks, points


def by_loop(mask: Tensor, point: Tensor, border: bool) -> float:
    """Interpolate between the four pixels around a point."""
    x, y = (p * n - 0.5 for p, n in zip(point.double().tolist(), (WIDTH, HEIGHT), strict=True))
    value = 0.0
    for column in (math.floor(x), math.floor(x) + 1):
        for row in (math.floor(y), math.floor(y) + 1):
            weight = (1 - abs(x - column)) * (1 - abs(y - row))
            if border:
                inside = mask[min(max(row, 0), HEIGHT - 1), min(max(column, 0), WIDTH - 1)]
            elif 0 <= row < HEIGHT and 0 <= column < WIDTH:
                inside = mask[row, column]
            else:
                continue
            value += weight * float(inside)
    return value


readers = pytest.mark.parametrize("reference", [False, True], ids=["fast", "reference"])
borders = pytest.mark.parametrize("border", [False, True], ids=["zeros", "border"])


@readers
@borders
def test_a_value_is_interpolated_between_the_four_pixels_around_the_point(
    border: bool, reference: bool
) -> None:
    masks, points = masks_and_points()
    with reference_ops(reference):
        found = mask_reader(masks, border)(points)
    expected = [[by_loop(mask, point, border) for point in points] for mask in masks]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


@readers
@borders
def test_each_row_of_points_can_have_a_mask_of_its_own(border: bool, reference: bool) -> None:
    masks, points = masks_and_points()
    indices = torch.tensor([2, 0, 2])
    rows = torch.stack([points, points.flip(0), points.roll(3, 0)])
    with reference_ops(reference):
        reader = mask_reader(masks, border)
        found = reader(rows, indices)
        expected = torch.stack([reader(row)[i] for row, i in zip(rows, indices, strict=True)])
    torch.testing.assert_close(found, expected)


@readers
def test_without_masks_there_are_no_values(reference: bool) -> None:
    masks, points = masks_and_points()
    with reference_ops(reference):
        reader = mask_reader(masks[:0], border=False)
        assert reader(points).shape == (0, 40)
        assert reader(points[None][:0], torch.zeros(0, dtype=torch.int64)).shape == (0, 40)


def test_at_pixel_centres_the_values_are_exactly_those_of_the_pixels() -> None:
    masks = random_masks(3, (64, 80), seed=1) > 0
    y, x = torch.meshgrid(torch.arange(64), torch.arange(80), indexing="ij")
    centres = torch.stack([(x.flatten() + 0.5) / 80, (y.flatten() + 0.5) / 64], 1)
    found = CornerMasks(masks, border=False)(centres)
    torch.testing.assert_close(found, masks.flatten(1).float(), rtol=0, atol=1e-5)


def test_pairs_that_share_a_mask_do_not_copy_it() -> None:
    masks = random_masks(2, (40, 50), seed=2) > 0
    points, indices = torch.rand(30, 20, 2), torch.arange(30) % 2
    with LargestTensor() as largest:
        CornerMasks(masks, border=False)(points, indices)
    assert largest.elements < 3 * 40 * 50
    with LargestTensor() as largest:
        mask_points_reference(masks, False, points, indices)
    assert largest.elements >= 30 * 40 * 50
