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
from mask_former.losses.mask_losses import dense_mask_losses
from tests import references
from tests.core_cases import LargestTensor, random_masks

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
    dense = dense_mask_losses(logits, masks.bool(), torch.arange(4))
    values = [sigmoid_focal_loss(flat, truth), dice_loss(flat, truth), *dense]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    for value in (*values, pairwise_focal_cost(flat, truth), pairwise_dice_cost(flat, truth)):
        assert value.isfinite().all()
    assert gradient.isfinite().all()
    wrong = (signs.gt(0) != masks.bool()).flatten(1).float()
    in_mask = torch.where(truth > 0, 0.25, 0.75)
    expected = (magnitude * in_mask * wrong).mean(1)  # a wrong pixel's cross-entropy is |x|
    torch.testing.assert_close(dense[0], expected, rtol=1e-5, atol=1e-6)


# dense_mask_losses: the same without holding full-size masks

SIZES = [
    pytest.param((8, 8), (32, 32), id="x4"),
    pytest.param((5, 7), (12, 17), id="non-integer factors"),
    pytest.param((6, 5), (6, 5), id="same size"),
    pytest.param((1, 9), (7, 20), id="one row"),
    pytest.param((9, 8), (5, 4), id="smaller targets"),
]


def dense_case(grid, size, seed=0):
    """Six pairs of four targets; the last two are one pixel and the full image."""
    logits = random_masks(6, grid, seed)
    masks = random_masks(4, size, seed + 1) > 0
    masks[2], masks[3] = False, True
    masks[2, size[0] // 2, size[1] - 1] = True
    return logits, masks, torch.tensor([1, 0, 2, 2, 3, 0])


def enlarged_losses(logits, masks, target):
    full = F.interpolate(logits[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)
    full, truth = full.flatten(1), masks[target].flatten(1).float()
    return sigmoid_focal_loss(full, truth), dice_loss(full, truth)


@pytest.mark.parametrize("chunk_pixels", [1, 500, 1 << 18])
@pytest.mark.parametrize("grid, size", SIZES)
def test_dense_losses_are_those_of_enlarged_masks(grid, size, chunk_pixels, monkeypatch):
    monkeypatch.setattr(mask_losses, "_CHUNK_PIXELS", chunk_pixels)
    logits, masks, target = dense_case(grid, size)
    logits.requires_grad_()
    found = dense_mask_losses(logits, masks, target)
    expected = enlarged_losses(logits, masks, target)
    weights = torch.linspace(0.5, 2, 12).view(2, 6)  # each pair and term pulls differently
    gradients = [
        torch.autograd.grad((weights * torch.stack(losses)).sum(), logits)[0]
        for losses in (found, expected)
    ]
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)
    scale = gradients[1].abs().max().item()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * scale)


def test_dense_losses_are_those_of_the_loops():
    logits, masks, target = dense_case((4, 5), (10, 13))
    focal, dice = dense_mask_losses(logits, masks, target)
    full = references.enlarge(logits.double(), (10, 13))
    for i, number in enumerate(target):
        truth = masks[number]
        assert focal[i].item() == pytest.approx(float(references.focal(full[i], truth)), rel=1e-5)
        assert dice[i].item() == pytest.approx(float(references.dice(full[i], truth)), rel=1e-5)


@pytest.mark.parametrize("chunk_pixels", [1, 1 << 18])
def test_the_written_gradient_is_the_numerical_one(chunk_pixels, monkeypatch):
    monkeypatch.setattr(mask_losses, "_CHUNK_PIXELS", chunk_pixels)
    logits, masks, target = dense_case((3, 4), (5, 9))
    logits = logits.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: dense_mask_losses(x, masks, target), logits)


def test_no_pair_gives_no_loss_and_still_a_gradient():
    logits = torch.zeros(0, 4, 5, requires_grad=True)
    for masks in (torch.zeros(0, 9, 9, dtype=torch.bool), torch.ones(2, 9, 9, dtype=torch.bool)):
        focal, dice = dense_mask_losses(logits, masks, torch.zeros(0, dtype=torch.int64))
        assert focal.shape == dice.shape == (0,)
        (gradient,) = torch.autograd.grad(focal.sum() + dice.sum(), logits)
        assert gradient.shape == logits.shape


def test_dense_losses_never_hold_more_than_a_chunk_of_full_size_masks(monkeypatch):
    monkeypatch.setattr(mask_losses, "_CHUNK_PIXELS", 64 * 64)
    logits, masks, target = dense_case((8, 8), (64, 64))
    kept = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
    ):
        dense_mask_losses(logits.requires_grad_(), masks, target)
    assert largest.elements == 64 * 64
    assert [tuple(tensor.shape) for tensor in kept] == [(6, 8, 8)] * 2
