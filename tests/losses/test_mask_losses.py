"""Mask terms and dice losses, of matched pairs and of all pairs, against reference formulas."""

import pytest
import torch

from mask_former.losses import CrossEntropyTerm, FocalTerm, dice_loss
from mask_former.losses.mask_losses import mask_losses
from mask_former.ops.dense_sums import dense_mask_sums
from mask_former.ops.mask_sums import Section
from mask_former.ops.pairwise_sums import pairwise_mask_sums
from tests.helpers import references
from tests.helpers.core_cases import logits_and_masks


def focal(logits, masks, alpha=0.25):
    return FocalTerm(alpha).loss(logits, masks).mean(1)


def cross_entropy(logits, masks):
    return CrossEntropyTerm().loss(logits, masks).mean(1)


def pairwise(which, term):
    """Return a function for the mean mask term (``which`` 0) or dice loss (1) of all pairs."""

    def cost(logits, masks):
        return mask_losses(pairwise_mask_sums(term, [logits], masks.bool()))[which]

    return cost


LOSSES = [
    pytest.param(focal, references.focal, id="focal"),
    pytest.param(cross_entropy, references.cross_entropy, id="cross-entropy"),
    pytest.param(dice_loss, references.dice, id="dice"),
]
COSTS = [
    pytest.param(pairwise(0, FocalTerm()), references.focal, id="focal"),
    pytest.param(pairwise(0, CrossEntropyTerm()), references.cross_entropy, id="cross-entropy"),
    pytest.param(pairwise(1, FocalTerm()), references.dice, id="dice"),
]


@pytest.mark.parametrize("loss, reference", LOSSES)
def test_losses_match_the_formulas(loss, reference):
    logits, masks = logits_and_masks()
    expected = [float(reference(row, mask)) for row, mask in zip(logits, masks, strict=True)]
    assert loss(logits, masks).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("loss, reference", LOSSES)
def test_gradients_match_the_formulas(loss, reference):
    logits, masks = logits_and_masks()
    logits.requires_grad_()
    (found,) = torch.autograd.grad(loss(logits, masks).sum(), logits)
    total = sum(reference(row, mask) for row, mask in zip(logits, masks, strict=True))
    (expected,) = torch.autograd.grad(total, logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("alpha", [0.25, 0.9, 0.5])
def test_the_focal_term_uses_alpha(alpha):
    logits, masks = logits_and_masks()
    found = focal(logits, masks, alpha)
    costs = pairwise(0, FocalTerm(alpha))(logits, masks)
    for i in range(len(logits)):
        expected = float(references.focal(logits[i], masks[i], alpha))
        assert found[i].item() == pytest.approx(expected, rel=1e-5, abs=1e-7)
        assert costs[i, i].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("cost, reference", COSTS)
def test_costs_are_the_losses_of_each_prediction_with_each_target(cost, reference):
    logits, _ = logits_and_masks(pairs=6)
    _, masks = logits_and_masks(pairs=4, seed=1)
    expected = references.pairwise(reference, logits, masks)
    torch.testing.assert_close(cost(logits, masks), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cost, reference", COSTS)
def test_costs_without_targets_or_predictions_are_an_empty_matrix(cost, reference):
    logits, masks = logits_and_masks()
    assert cost(logits, masks[:0]).shape == (len(logits), 0)
    assert cost(logits[:0], masks).shape == (0, len(masks))


@pytest.mark.parametrize("magnitude", [30.0, 100.0, 1e4])
@pytest.mark.parametrize("term", [FocalTerm(), CrossEntropyTerm()], ids=str)
def test_confident_logits_give_finite_losses_costs_and_gradients(term, magnitude):
    g = torch.Generator().manual_seed(0)
    masks = (torch.rand(4, 6, 7, generator=g) > 0.5).float()
    signs = torch.sign(torch.randn(4, 6, 7, generator=g))
    logits = (magnitude * signs).requires_grad_()
    flat, targets = logits.flatten(1), masks.flatten(1)
    pairs = Section(0, 0, torch.arange(4), torch.arange(4))
    dense = mask_losses(dense_mask_sums(term, [logits[None]], [masks.bool()], [pairs]))
    values = [term.loss(flat, targets).mean(1), dice_loss(flat, targets), *dense]
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), logits)
    costs = [pairwise(which, term)(flat.detach(), targets) for which in (0, 1)]
    for value in (*values, *costs):
        assert value.isfinite().all()
    assert gradient.isfinite().all()
    wrong = (signs.gt(0) != masks.bool()).flatten(1).float()
    weight = torch.where(targets > 0, 0.25, 0.75) if term == FocalTerm() else 1.0
    expected = (magnitude * weight * wrong).mean(1)  # a wrong pixel's cross-entropy is |x|
    torch.testing.assert_close(dense[0], expected, rtol=1e-5, atol=1e-6)
