"""Losses of matched pairs: those of enlarged masks, without full-size tensors; and at points."""

import pytest
import torch
import torch.nn.functional as F

from mask_former.losses import dice_loss, pair_losses, sigmoid_focal_loss
from mask_former.losses.pair_losses import Section, dense_mask_losses, point_mask_losses
from tests.helpers import references
from tests.helpers.core_cases import LargestTensor, random_masks


def one_section(logits, masks, target, valid=None):
    """The losses of M logits h×w, as one layer's prediction for one image."""
    section = Section(0, 0, torch.arange(len(logits)), target)
    return dense_mask_losses([logits[None]], [masks], [section], None if valid is None else [valid])


@pytest.fixture(params=[(1, 1), (1 << 10, 3), (1 << 18, 32)], ids=str)
def tile(request, monkeypatch):
    """Work in tiles of so many elements, in bands of so many rows."""
    elements, rows = request.param
    monkeypatch.setattr(pair_losses, "tile_elements", lambda device: elements)
    monkeypatch.setattr(pair_losses, "_BAND", rows)


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


@pytest.mark.parametrize("grid, size", SIZES)
def test_dense_losses_are_those_of_enlarged_masks(grid, size, tile):
    logits, masks, target = dense_case(grid, size)
    logits.requires_grad_()
    found = one_section(logits, masks, target)
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
    focal, dice = one_section(logits, masks, target)
    full = references.enlarge(logits.double(), (10, 13))
    for i, number in enumerate(target):
        truth = masks[number]
        assert focal[i].item() == pytest.approx(float(references.focal(full[i], truth)), rel=1e-5)
        assert dice[i].item() == pytest.approx(float(references.dice(full[i], truth)), rel=1e-5)


@pytest.mark.parametrize("tile", [(1 << 10, 2)], indirect=True)
@pytest.mark.parametrize("ignored", [False, True])
def test_the_written_gradient_is_the_numerical_one(ignored, tile):
    logits, masks, target = dense_case((3, 4), (5, 9))
    logits = logits.double().requires_grad_()
    valid = random_masks(1, (5, 9), seed=5)[0] > 0 if ignored else None
    assert torch.autograd.gradcheck(lambda x: one_section(x, masks, target, valid), logits)


def test_no_pair_gives_no_loss_and_still_a_gradient():
    logits = torch.zeros(0, 4, 5, requires_grad=True)
    for masks in (torch.zeros(0, 9, 9, dtype=torch.bool), torch.ones(2, 9, 9, dtype=torch.bool)):
        focal, dice = one_section(logits, masks, torch.zeros(0, dtype=torch.int64))
        assert focal.shape == dice.shape == (0,)
        (gradient,) = torch.autograd.grad(focal.sum() + dice.sum(), logits)
        assert gradient.shape == logits.shape


def test_nothing_of_full_size_is_held_and_nothing_is_kept_but_the_logits(monkeypatch):
    monkeypatch.setattr(pair_losses, "tile_elements", lambda device: 4 * 64)
    monkeypatch.setattr(pair_losses, "_BAND", 4)
    logits, masks, target = dense_case((8, 8), (64, 64))
    logits.requires_grad_()
    kept = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
    ):
        losses = one_section(logits, masks, target)
        torch.stack(losses).sum().backward()
    assert largest.elements == 8 * 64  # the grid of one pair, widened
    large = [tensor for tensor in kept if tensor.numel() > len(logits)]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]


def test_each_layer_and_image_gets_its_own_gradient_also_without_a_pair():
    masks = [random_masks(count, (9, 10), seed=count) > 0 for count in (2, 3)]
    layers = [random_masks(8, (4, 5), seed).view(2, 4, 4, 5).requires_grad_() for seed in (7, 8, 9)]
    pairs = {(0, 0): ([3, 1], [0, 1]), (0, 1): ([], []), (2, 0): ([0], [1]), (2, 1): ([2], [2])}
    sections = [
        Section(layer, image, *(torch.tensor(x, dtype=torch.int64) for x in pair))
        for (layer, image), pair in pairs.items()
    ]
    found = dense_mask_losses(layers, masks, sections)
    together = [
        one_section(layers[layer][image, queries], masks[image], targets)
        for layer, image, queries, targets in sections
    ]
    for value, parts in zip(found, zip(*together, strict=True), strict=True):
        torch.testing.assert_close(value, torch.cat(parts))
    gradients = torch.autograd.grad(torch.stack(found).sum(), layers)
    alone = torch.autograd.grad(sum(torch.stack(losses).sum() for losses in together), layers[::2])
    torch.testing.assert_close(gradients[::2], alone)
    assert (gradients[1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mask_of_the_whole_image_is_finite_in_half_precision(dtype):
    size, grid = (800, 1344), (200, 336)
    masks = torch.stack([torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)])
    logits = torch.stack([torch.full(grid, x) for x in (-9.0, 9.0)]).to(dtype).requires_grad_()
    focal, dice = one_section(logits, masks, torch.arange(2))
    assert focal.dtype == dice.dtype == torch.float32
    assert focal.tolist() == pytest.approx([0.25 * 9, 0.75 * 9], rel=1e-3)
    assert dice.tolist() == pytest.approx([1, 1], abs=1e-3)
    (gradient,) = torch.autograd.grad((focal + dice).sum(), logits)
    assert gradient.dtype == dtype and gradient.isfinite().all()


# Pixels that do not count


def test_pixels_that_do_not_count_are_as_if_they_were_not_there():
    logits, masks, target = dense_case((6, 5), (6, 5))  # the same size: each pixel its own logit
    valid = random_masks(1, (6, 5), seed=9)[0] > 0
    logits.requires_grad_()
    found = one_section(logits, masks, target, valid)
    few, truth = logits[:, valid], masks[target][:, valid].float()
    expected = sigmoid_focal_loss(few, truth), dice_loss(few, truth)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad(torch.stack(losses).sum(), logits)[0] for losses in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert (gradients[0][:, ~valid] == 0).all()


def test_where_no_pixel_counts_there_is_no_loss():
    logits, masks, target = dense_case((3, 4), (5, 9))
    found = one_section(logits.requires_grad_(), masks, target, torch.zeros(5, 9).bool())
    assert [value.tolist() for value in found] == [[0.0] * 6] * 2
    (gradient,) = torch.autograd.grad(torch.stack(found).sum(), logits)
    assert (gradient == 0).all()


# point_mask_losses


@pytest.mark.parametrize("ignored", [False, True])
def test_losses_at_points_and_their_gradients_are_those_of_the_formulas(ignored):
    logits = 4 * random_masks(6, (5, 9), seed=3).flatten(1)
    masks = random_masks(6, (5, 9), seed=4).flatten(1) > 0
    valid = random_masks(1, (5, 9), seed=5).flatten() > 0 if ignored else torch.ones(45).bool()
    logits.requires_grad_()
    of_all = valid.expand_as(masks) if ignored else None
    found = point_mask_losses(logits, masks, of_all)
    few, truth = logits[:, valid], masks[:, valid].float()
    expected = sigmoid_focal_loss(few, truth), dice_loss(few, truth)
    weights = torch.linspace(0.5, 2, 12).view(2, 6)
    gradients = [
        torch.autograd.grad((weights * torch.stack(losses)).sum(), logits)[0]
        for losses in (found, expected)
    ]
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
