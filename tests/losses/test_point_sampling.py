"""Mask losses and matching at sampled points."""

import pytest
import torch

from mask_former.losses import HungarianMatcher, PointRule, point_sampling
from mask_former.losses.point_sampling import random_points, read_pixels, uncertain_points
from tests.helpers.core_cases import (
    build_criterion,
    layers_of,
    pairs_of,
    random_batch,
    random_masks,
    run_criterion,
)

BORDER = PointRule(1)
ZEROS = PointRule(1, padding="zeros", targets="bilinear")


def pixel_centres(height, width):
    """Return the centres (x, y) in [0, 1] of all H·W pixels, row by row, as (H·W)×2."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([(x.flatten() + 0.5) / width, (y.flatten() + 0.5) / height], 1)


def sampling_criterion(*arguments):
    criterion = build_criterion()
    criterion.point_rule = criterion.matcher.point_rule = PointRule(*arguments)
    return criterion


# Points


def test_points_at_cell_centres_read_the_cell_values():
    maps = random_masks(3, (4, 6), seed=0)
    centres = pixel_centres(4, 6)
    for points in (centres, centres.expand(3, -1, -1)):
        torch.testing.assert_close(BORDER.read_logits(maps, points), maps.flatten(1))


def test_logits_are_bilinear_between_centres_and_constant_outside():
    maps = torch.tensor([[[0.0, 8.0], [4.0, 12.0]]])
    points = torch.tensor([[0.5, 0.5], [0.375, 0.25], [0.0, 1.0]])
    assert BORDER.read_logits(maps, points).tolist() == [[6.0, 2.0, 4.0]]


def test_with_zero_padding_logits_and_masks_fade_to_0_outside_the_centres():
    maps = torch.tensor([[[0.0, 8.0], [4.0, 12.0]]])
    masks = torch.tensor([[[True, True], [True, False]]])
    points = torch.tensor([[0.25, 0.25], [0.5, 0.25], [1.0, 0.75], [0.0, 0.0]])
    assert ZEROS.read_logits(maps, points).tolist() == [[0.0, 4.0, 6.0, 0.0]]
    # At the right edge half of the weight lies outside, in the corner three quarters.
    assert ZEROS.mask_reader(masks)(points).tolist() == [[1.0, 1.0, 0.0, 0.25]]
    again = ZEROS.mask_reader(masks)(points.expand(2, -1, -1), torch.tensor([0, 0]))
    assert again.tolist() == [[1.0, 1.0, 0.0, 0.25]] * 2


def test_a_mask_at_a_point_has_the_value_of_the_pixel_around_it():
    masks = random_masks(3, (5, 7), seed=1) > 0
    points = torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    points[:2] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])  # corners belong to the outermost pixels
    expected = [
        [bool(mask[min(int(y * 5), 4), min(int(x * 7), 6)]) for x, y in points] for mask in masks
    ]
    assert read_pixels(masks, points).tolist() == expected
    order = torch.tensor([2, 0, 0])
    found = read_pixels(masks, points.expand(3, -1, -1), order)
    assert found.tolist() == [expected[i] for i in order]


def test_random_points_are_uniform_over_the_image():
    torch.manual_seed(0)
    points = random_points(4000, torch.device("cpu"))
    assert points.shape == (4000, 2) and points.min() >= 0 and points.max() <= 1
    assert points.mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.02)


@pytest.mark.parametrize("ratio, near", [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_the_configured_share_of_points_lies_where_the_prediction_is_uncertain(ratio, near):
    torch.manual_seed(0)
    slope = torch.linspace(-8, 8, 16).expand(2, 16, 16)  # 0 along the vertical centre line
    points = uncertain_points(slope, PointRule(400, 4.0, ratio))
    assert points.shape == (2, 400, 2) and not points.requires_grad
    close = ((points[..., 0] - 0.5).abs() < 0.14).float().mean().item()  # a quarter of the width
    assert close == pytest.approx(near + (1 - near) * 0.28, abs=0.06)


def test_points_are_chosen_for_every_mask_when_processed_in_groups(monkeypatch):
    monkeypatch.setattr(point_sampling, "_CANDIDATES", 2 * 400)  # groups of two masks
    slopes = torch.stack([torch.linspace(-8, 8, 16).expand(16, 16).roll(i, 1) for i in range(5)])
    valid = torch.ones_like(slopes, dtype=torch.bool)
    points = uncertain_points(slopes, PointRule(100, 4.0, 1.0), valid)
    assert points.shape == (5, 100, 2)
    assert BORDER.read_logits(slopes, points).abs().mean(1).max() < 2  # near its own zero
    assert uncertain_points(slopes[:0], PointRule(10), valid[:0]).shape == (0, 10, 2)


def test_invalid_cells_are_not_chosen_as_uncertain():
    torch.manual_seed(0)
    slope = torch.linspace(-8, 8, 16).expand(1, 16, 16)
    valid = torch.ones(1, 16, 16, dtype=torch.bool)
    valid[..., 6:10] = False
    points = uncertain_points(slope, PointRule(100, 4.0, 1.0), valid)
    assert ((points[..., 0] < 6 / 16) | (points[..., 0] > 10 / 16)).all()


# Losses and matches


def test_losses_and_matches_at_all_pixel_centres_equal_the_dense_ones():
    grid = (6, 8)
    outputs, targets = random_batch(seed=1, counts=(3, 0, 7), grid=grid, size=grid)
    centres = pixel_centres(*grid)
    criterion = sampling_criterion(len(centres))
    criterion.fixed_points = criterion.matcher.fixed_points = centres
    found = run_criterion(criterion, outputs, targets)
    dense = run_criterion(build_criterion(), outputs, targets)
    assert found["losses"] == pytest.approx(dense["losses"], rel=1e-5)
    assert found["matches_per_layer"] == dense["matches_per_layer"]
    expected = torch.from_numpy(dense["grad_masks"])
    torch.testing.assert_close(
        torch.from_numpy(found["grad_masks"]), expected, rtol=1e-4, atol=1e-8
    )


def test_losses_at_random_points_approximate_the_dense_ones():
    outputs, targets = random_batch(seed=2, layers=1, counts=(3, 4), grid=(8, 8), size=(32, 32))
    torch.manual_seed(0)
    criterion = sampling_criterion(4000, 1.0, 0.0)  # no importance sampling
    criterion.matcher.point_rule = None  # the same pairs
    for name, value in build_criterion()(outputs, targets).items():
        assert criterion(outputs, targets)[name].item() == pytest.approx(value.item(), rel=0.05)


def test_the_losses_are_reproducible_with_a_seed():
    outputs, targets = random_batch(seed=3)
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        runs.append(run_criterion(sampling_criterion(50), outputs, targets))
    assert runs[0]["losses"] == runs[1]["losses"] != runs[2]["losses"]
    assert (runs[0]["grad_masks"] == runs[1]["grad_masks"]).all()


def test_permuting_queries_permutes_the_match():
    outputs, targets = random_batch(seed=4, layers=1, counts=(3, 5))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    permuted = {name: outputs[name][:, order] for name in ("pred_logits", "pred_masks")}
    sampled = HungarianMatcher(1, 20, 1, point_rule=PointRule(60))
    matches = []
    for predictions in (outputs, permuted):
        torch.manual_seed(0)
        matches.append(sampled(predictions, targets))
    for match, moved in zip(*matches, strict=True):
        assert sorted((int(order[q]), t) for q, t in pairs_of(moved)) == pairs_of(match)


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (9, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_and_gradients_are_finite_with_any_number_of_targets(counts, dtype):
    outputs, targets = random_batch(seed=5, counts=counts)
    layers = [{k: v.to(dtype).requires_grad_() for k, v in x.items()} for x in layers_of(outputs)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = sampling_criterion(40)({**layers[-1], "aux_outputs": layers[:-1]}, targets)
    assert all(value.isfinite() and value.dtype == torch.float32 for value in losses.values())
    sum(losses.values()).backward()
    for layer in layers:
        assert layer["pred_masks"].grad.isfinite().all()
        for image, count in enumerate(counts):
            assert bool((layer["pred_masks"].grad[image] != 0).any()) == (count > 0)


def test_the_smallest_meaningful_settings_are_allowed():
    assert PointRule(1, 1.0, 0.0).num_points == 1


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((-1,), r"TRAIN_NUM_POINTS is -1, expected 1 or more"),
        ((10, 0.5), r"OVERSAMPLE_RATIO is 0\.5, expected 1 or more"),
        ((10, 3.0, 1.2), r"IMPORTANCE_SAMPLE_RATIO is 1\.2, expected a fraction in \[0, 1\]"),
    ],
)
def test_invalid_settings_are_an_error_that_names_the_key(arguments, message):
    with pytest.raises(ValueError, match=rf"MODEL\.MASK_FORMER\.{message}"):
        PointRule(*arguments)
