"""Sums over all pairs, computed tile by tile, match the reference version."""

import pytest
import torch

from mask_former.losses import CrossEntropyTerm, FocalTerm
from mask_former.losses.mask_losses import mask_losses
from mask_former.ops import pairwise_sums
from mask_former.ops.pairwise_sums import pairwise_mask_sums, pairwise_mask_sums_reference
from tests.helpers.core_cases import LargestTensor, logits_and_masks


def costs(logits, masks, valid=None, term=None):
    """Return the mean mask terms and the dice losses of all pairs."""
    return mask_losses(pairwise_mask_sums(term or FocalTerm(), logits, masks, valid))


@pytest.mark.parametrize("term", [FocalTerm(), CrossEntropyTerm()], ids=str)
@pytest.mark.parametrize("elements", [1, 40, 1 << 17])
def test_tiles_add_up_to_the_reference_version(elements, term, monkeypatch):
    monkeypatch.setattr(pairwise_sums, "tile_elements", lambda device: elements)
    logits, _ = logits_and_masks(pairs=6)
    _, masks = logits_and_masks(pairs=4, seed=1)
    found = costs([logits[:2], logits[2:2], logits[2:]], masks.bool(), term=term)
    expected = mask_losses(pairwise_mask_sums_reference(term, [logits], masks))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("elements", [1, 40, 1 << 17])
def test_invalid_pixels_have_no_effect(elements, monkeypatch):
    monkeypatch.setattr(pairwise_sums, "tile_elements", lambda device: elements)
    logits, masks = logits_and_masks(pairs=6)
    valid = torch.rand(logits.shape[1], generator=torch.Generator().manual_seed(2)) > 0.5
    found = costs([logits], masks.bool(), valid)
    expected = costs([logits[:, valid]], masks[:, valid].bool())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    reference = pairwise_mask_sums_reference(FocalTerm(), [logits], masks.bool(), valid)
    torch.testing.assert_close(found, mask_losses(reference), rtol=1e-5, atol=1e-6)
    none = costs([logits], masks.bool(), torch.zeros_like(valid))
    assert all((cost == 0).all() for cost in none)


def test_costs_never_hold_more_than_a_tile_of_pixels(monkeypatch):
    monkeypatch.setattr(pairwise_sums, "tile_elements", lambda device: 64)
    logits, masks = torch.randn(8, 4096).bfloat16(), torch.rand(5, 4096) > 0.5
    with LargestTensor() as largest:
        costs([logits], masks)
    assert largest.elements == 2 * 8 * 8  # two factors with 8 rows of 8 pixels


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_costs_of_a_mask_of_a_million_pixels_are_finite_in_half_precision(dtype):
    masks = torch.stack([torch.ones(800 * 1344), torch.zeros(800 * 1344)]).bool()
    logits = torch.full((1, 800 * 1344), -9.0, dtype=dtype)
    focal, dice = costs([logits], masks)
    assert focal[0].tolist() == pytest.approx([0.25 * 9, 0], abs=1e-3)
    assert dice.isfinite().all() and dice[0, 0].item() == pytest.approx(1, abs=1e-3)
