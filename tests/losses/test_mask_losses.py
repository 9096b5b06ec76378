"""Focal and dice, of pairs and of all pairs, are what the written formulas say."""

import pytest
import torch
import torch.nn.functional as F

from mask_former.losses import (
    dice_loss,
    mask_losses,
    pairwise_dice_cost,
    pairwise_focal_cost,
    sigmoid_focal_loss,
)
from mask_former.losses.mask_losses import leave_out, pairwise_mask_costs, softplus
from mask_former.losses.pair_losses import Section, dense_mask_losses
from tests.helpers import references
from tests.helpers.core_cases import LargestTensor

LOSSES = [
    pytest.param(sigmoid_focal_loss, references.focal, id="focal"),
    pytest.param(dice_loss, references.dice, id="dice"),
]
COSTS = [
    pytest.param(pairwise_focal_cost, references.focal, id="focal"),
    pytest.param(pairwise_dice_cost, references.dice, id="dice"),
]


def logits_and_masks(pairs=5, pixels=23, seed=0):
    """Logits of all sizes, and masks: random ones, then an empty, a full and a one-pixel one."""
    g = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(pairs, pixels, generator=g)
    masks = torch.rand(pairs, pixels, generator=g) > 0.5
    masks[-3], masks[-2], masks[-1] = False, True, False
    masks[-1, 4] = True
    return logits, masks.float()


@pytest.mark.parametrize("loss, reference", LOSSES)
def test_a_loss_is_its_formula(loss, reference):
    logits, masks = logits_and_masks()
    expected = [float(reference(row, mask)) for row, mask in zip(logits, masks, strict=True)]
    assert loss(logits, masks).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("loss, reference", LOSSES)
def test_the_gradient_of_a_loss_is_its_formulas(loss, reference):
    logits, masks = logits_and_masks()
    logits.requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, masks).sum(), logits)
    total = sum(reference(row, mask) for row, mask in zip(logits, masks, strict=True))
    (expected,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("alpha, gamma", [(0.25, 2.0), (0.9, 2.0), (0.5, 0.0), (0.25, 1.5)])
def test_focal_takes_its_alpha_and_gamma(alpha, gamma):
    logits, masks = logits_and_masks()
    found = sigmoid_focal_loss(logits, masks, alpha, gamma)
    pairwise = pairwise_focal_cost(logits, masks, alpha, gamma)
    for i in range(len(logits)):
        expected = float(references.focal(logits[i], masks[i], alpha, gamma))
        assert found[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert pairwise[i, i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("cost, reference", COSTS)
def test_a_cost_is_the_loss_of_each_prediction_with_each_target(cost, reference):
    logits, _ = logits_and_masks(pairs=6)
    _, masks = logits_and_masks(pairs=4, seed=1)
    expected = references.pairwise(reference, logits, masks)
    torch.testing.assert_close(cost(logits, masks), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost, reference", COSTS)
def test_costs_of_no_target_are_an_empty_matrix(cost, reference):
    logits, masks = logits_and_masks()
    assert cost(logits, masks[:0]).shape == (len(logits), 0)
    assert cost(logits[:0], masks).shape == (0, len(masks))


@pytest.mark.parametrize("magnitude", [30.0, 100.0, 1e4])
def test_confident_logits_give_finite_losses_costs_and_gradients(magnitude):
    g = torch.Generator().manual_seed(0)
    masks = (torch.rand(4, 6, 7, generator=g) > 0.5).float()
    signs = torch.sign(torch.randn(4, 6, 7, generator=g))
    logits = (magnitude * signs).requires_grad_()
    flat, truth = logits.flatten(1), masks.flatten(1)
    pairs = Section(0, 0, torch.arange(4), torch.arange(4))
    dense = dense_mask_losses([logits[None]], [masks.bool()], [pairs])
    values = [sigmoid_focal_loss(flat, truth), dice_loss(flat, truth), *dense]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    for value in (*values, pairwise_focal_cost(flat, truth), pairwise_dice_cost(flat, truth)):
        assert value.isfinite().all()
    assert gradient.isfinite().all()
    wrong = (signs.gt(0) != masks.bool()).flatten(1).float()
    in_mask = torch.where(truth > 0, 0.25, 0.75)
    expected = (magnitude * in_mask * wrong).mean(1)  # a wrong pixel's cross-entropy is |x|
    torch.testing.assert_close(dense[0], expected, rtol=1e-5, atol=1e-6)


# pairwise_mask_costs: both costs at once


@pytest.mark.parametrize("elements", [1, 40, 1 << 17])
def test_both_costs_at_once_are_each_alone(elements, monkeypatch):
    monkeypatch.setattr(mask_losses, "tile_elements", lambda device: elements)
    logits, _ = logits_and_masks(pairs=6)
    _, masks = logits_and_masks(pairs=4, seed=1)
    found = pairwise_mask_costs([logits[:2], logits[2:2], logits[2:]], masks.bool())
    expected = pairwise_focal_cost(logits, masks), pairwise_dice_cost(logits, masks)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 40, 1 << 17])
def test_pixels_that_do_not_count_are_as_if_they_were_not_there(elements, monkeypatch):
    monkeypatch.setattr(mask_losses, "tile_elements", lambda device: elements)
    logits, masks = logits_and_masks(pairs=6)
    valid = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(2)) > 0.5
    found = pairwise_mask_costs([logits], masks.bool(), valid)
    expected = pairwise_mask_costs([logits[:, valid]], masks[:, valid].bool())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    none = pairwise_mask_costs([logits], masks.bool(), torch.zeros_like(valid))
    assert all((cost == 0).all() for cost in none)


def test_costs_never_hold_more_than_a_tile_of_all_pixels(monkeypatch):
    monkeypatch.setattr(mask_losses, "tile_elements", lambda device: 64)
    logits, masks = torch.randn(8, 4096).bfloat16(), torch.rand(5, 4096) > 0.5
    with LargestTensor() as largest:
        pairwise_mask_costs([logits], masks)
    assert largest.elements == 2 * 8 * 8  # two factors of 8 rows by 8 pixels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_costs_of_a_mask_of_a_million_pixels_are_finite_in_half_precision(dtype):
    masks = torch.stack([torch.ones(800 * 1344), torch.zeros(800 * 1344)]).bool()
    logits = torch.full((1, 800 * 1344), -9.0, dtype=dtype)
    focal, dice = pairwise_mask_costs([logits], masks)
    assert focal[0].tolist() == pytest.approx([0.25 * 9, 0], abs=1e-3)
    assert dice.isfinite().all() and dice[0, 0].item() == pytest.approx(1, abs=1e-3)


def test_softplus_is_accurate_over_all_of_fp32():
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([-1e4, 1e4, 3e38, -3e38])])
    expected = F.softplus(x.double())
    found = softplus(x, x.neg().sigmoid()).double()
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-7)


def test_what_is_left_out_adds_exactly_nothing():
    logits = leave_out(torch.randn(2, 5, requires_grad=True), torch.zeros(5).bool())
    nothing = torch.zeros(2, 5)
    assert sigmoid_focal_loss(logits, nothing).tolist() == [0.0, 0.0]
    assert logits.sigmoid().sum().item() == 0.0
