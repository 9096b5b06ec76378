"""Sums over matched pairs, at points and of upsampled masks, without full-size tensors."""

import pytest
import torch
import torch.nn.functional as F

from mask_former.losses import CrossEntropyTerm, FocalTerm, dice_loss
from mask_former.losses.mask_losses import mask_losses
from mask_former.ops import dense_sums, point_sums
from mask_former.ops.dense_sums import dense_mask_sums, dense_mask_sums_reference
from mask_former.ops.mask_sums import (
    Section,
    leave_out,
    point_mask_sums_reference,
    softplus,
)
from mask_former.ops.point_sums import point_mask_sums
from tests.helpers import references
from tests.helpers.core_cases import LargestTensor, random_masks

FOCAL = FocalTerm()
TERMS = [FOCAL, FocalTerm(0.9), CrossEntropyTerm()]


def one_section(logits, masks, target, valid=None, term=FOCAL, sums=dense_mask_sums):
    """Return the losses of M×h×w logits, as one layer's prediction for one image."""
    section = Section(0, 0, torch.arange(len(logits)), target)
    valid = None if valid is None else [valid]
    return mask_losses(sums(term, [logits[None]], [masks], [section], valid))


@pytest.fixture(params=[(1, 1), (1 << 10, 3), (1 << 18, 32)], ids=str)
def tile(request, monkeypatch):
    """Limit tiles to the given number of elements, and bands to the given number of rows."""
    elements, rows = request.param
    monkeypatch.setattr(dense_sums, "tile_elements", lambda device: elements)
    monkeypatch.setattr(dense_sums, "_BAND", rows)


SIZES = [
    pytest.param((8, 8), (32, 32), id="x4"),
    pytest.param((5, 7), (12, 17), id="non-integer factors"),
    pytest.param((6, 5), (6, 5), id="same size"),
    pytest.param((1, 9), (7, 20), id="one row"),
    pytest.param((9, 8), (5, 4), id="smaller targets"),
]


def dense_case(grid, size, seed=0):
    """Return six pairs with four targets; targets 2 and 3 are one pixel and the full image."""
    logits = random_masks(6, grid, seed)
    masks = random_masks(4, size, seed + 1) > 0
    masks[2], masks[3] = False, True
    masks[2, size[0] // 2, size[1] - 1] = True
    return logits, masks, torch.tensor([1, 0, 2, 2, 3, 0])


def formulas(term, logits, targets):
    """Return the mean mask term and the dice loss, M values each, of M×P logits."""
    return term.loss(logits, targets).mean(1), dice_loss(logits, targets)


def upsampled_losses(logits, masks, target, term=FOCAL):
    full = F.interpolate(logits[:, None], masks.shape[-2:], mode="bilinear", align_corners=False)
    full, targets = full.flatten(1), masks[target].flatten(1).float()
    return formulas(term, full, targets)


@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("grid, size", SIZES)
def test_dense_losses_equal_those_of_upsampled_masks(grid, size, term, tile):
    logits, masks, target = dense_case(grid, size)
    logits.requires_grad_()
    found = one_section(logits, masks, target, term=term)
    expected = upsampled_losses(logits, masks, target, term)
    weights = torch.linspace(0.5, 2, 12).view(2, 6)  # different for each pair and term
    gradients = [
        torch.autograd.grad((weights * torch.stack(losses)).sum(), logits)[0]
        for losses in (found, expected)
    ]
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)
    scale = gradients[1].abs().max().item()
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6 * scale)


def test_dense_losses_match_the_reference_loops():
    logits, masks, target = dense_case((4, 5), (10, 13))
    focal, dice = one_section(logits, masks, target)
    full = references.upsample(logits.double(), (10, 13))
    for i, number in enumerate(target):
        targets = masks[number]
        assert focal[i].item() == pytest.approx(float(references.focal(full[i], targets)), rel=1e-5)
        assert dice[i].item() == pytest.approx(float(references.dice(full[i], targets)), rel=1e-5)


@pytest.mark.parametrize("tile", [(1 << 10, 2)], indirect=True)
@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_the_implemented_gradient_equals_the_numerical_one(ignored, term, tile):
    logits, masks, target = dense_case((3, 4), (5, 9))
    logits = logits.double().requires_grad_()
    valid = random_masks(1, (5, 9), seed=5)[0] > 0 if ignored else None
    assert torch.autograd.gradcheck(lambda x: one_section(x, masks, target, valid, term), logits)


def test_without_pairs_the_losses_are_empty_and_differentiable():
    logits = torch.zeros(0, 4, 5, requires_grad=True)
    for masks in (torch.zeros(0, 9, 9, dtype=torch.bool), torch.ones(2, 9, 9, dtype=torch.bool)):
        focal, dice = one_section(logits, masks, torch.zeros(0, dtype=torch.int64))
        assert focal.shape == dice.shape == (0,)
        (gradient,) = torch.autograd.grad(focal.sum() + dice.sum(), logits)
        assert gradient.shape == logits.shape


def test_no_tensor_has_full_size_and_only_the_logits_are_kept(monkeypatch):
    monkeypatch.setattr(dense_sums, "tile_elements", lambda device: 4 * 64)
    monkeypatch.setattr(dense_sums, "_BAND", 4)
    logits, masks, target = dense_case((8, 8), (64, 64))
    logits.requires_grad_()
    kept = []
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x),
    ):
        losses = one_section(logits, masks, target)
        torch.stack(losses).sum().backward()
    assert largest.elements == 8 * 64  # the grid of one pair, upsampled in width
    large = [tensor for tensor in kept if tensor.numel() > len(logits)]
    assert [tensor.data_ptr() for tensor in large] == [logits.data_ptr()]


def test_each_layer_and_image_gets_its_own_gradient_even_without_a_pair():
    masks = [random_masks(count, (9, 10), seed=count) > 0 for count in (2, 3)]
    layers = [random_masks(8, (4, 5), seed).view(2, 4, 4, 5).requires_grad_() for seed in (7, 8, 9)]
    pairs = {(0, 0): ([3, 1], [0, 1]), (0, 1): ([], []), (2, 0): ([0], [1]), (2, 1): ([2], [2])}
    sections = [
        Section(layer, image, *(torch.tensor(x, dtype=torch.int64) for x in pair))
        for (layer, image), pair in pairs.items()
    ]
    found = mask_losses(dense_mask_sums(FOCAL, layers, masks, sections))
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
def test_losses_of_a_mask_of_the_whole_image_are_finite_in_half_precision(dtype):
    size, grid = (800, 1344), (200, 336)
    masks = torch.stack([torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)])
    logits = torch.stack([torch.full(grid, x) for x in (-9.0, 9.0)]).to(dtype).requires_grad_()
    focal, dice = one_section(logits, masks, torch.arange(2))
    assert focal.dtype == dice.dtype == torch.float32
    assert focal.tolist() == pytest.approx([0.25 * 9, 0.75 * 9], rel=1e-3)
    assert dice.tolist() == pytest.approx([1, 1], abs=1e-3)
    (gradient,) = torch.autograd.grad((focal + dice).sum(), logits)
    assert gradient.dtype == dtype and gradient.isfinite().all()


# Invalid pixels


def test_invalid_pixels_have_no_effect():
    logits, masks, target = dense_case((6, 5), (6, 5))  # same size: one logit per pixel
    valid = random_masks(1, (6, 5), seed=9)[0] > 0
    logits.requires_grad_()
    found = one_section(logits, masks, target, valid)
    few, targets = logits[:, valid], masks[target][:, valid].float()
    expected = formulas(FOCAL, few, targets)
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)
    gradients = [
        torch.autograd.grad(torch.stack(losses).sum(), logits)[0] for losses in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)
    assert (gradients[0][:, ~valid] == 0).all()


def test_without_valid_pixels_losses_and_gradients_are_0():
    logits, masks, target = dense_case((3, 4), (5, 9))
    found = one_section(logits.requires_grad_(), masks, target, torch.zeros(5, 9).bool())
    assert [value.tolist() for value in found] == [[0.0] * 6] * 2
    (gradient,) = torch.autograd.grad(torch.stack(found).sum(), logits)
    assert (gradient == 0).all()


# point_mask_sums


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("term", TERMS, ids=str)
@pytest.mark.parametrize("sums", [point_mask_sums, point_mask_sums_reference])
def test_losses_at_points_and_their_gradients_match_the_formulas(ignored, term, sums):
    logits = 4 * random_masks(6, (5, 9), seed=3).flatten(1)
    masks = random_masks(6, (5, 9), seed=4).flatten(1) > 0
    valid = random_masks(1, (5, 9), seed=5).flatten() > 0 if ignored else torch.ones(45).bool()
    logits.requires_grad_()
    of_all = valid.expand_as(masks) if ignored else None
    found = mask_losses(sums(term, logits, masks, of_all))
    few, targets = logits[:, valid], masks[:, valid].float()
    expected = formulas(term, few, targets)
    weights = torch.linspace(0.5, 2, 12).view(2, 6)
    gradients = [
        torch.autograd.grad((weights * torch.stack(losses)).sum(), logits)[0]
        for losses in (found, expected)
    ]
    for value, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(value, reference, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("elements", [1, 1 << 18])
@pytest.mark.parametrize("sums", [point_mask_sums, point_mask_sums_reference])
def test_fractional_targets_are_summed_as_fractions(sums, elements, monkeypatch):
    monkeypatch.setattr(point_sums, "tile_elements", lambda device: elements)
    logits = random_masks(3, (4, 5), seed=6).flatten(1).requires_grad_()
    targets = torch.rand(3, 20, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) > 0.3
    found = mask_losses(sums(CrossEntropyTerm(), logits, targets, valid))
    expected = []
    for i in range(3):
        p, t = logits[i, valid[i]].double().sigmoid(), targets[i, valid[i]].double()
        entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        dice = 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
        expected.append(torch.stack([entropy, dice]))
    expected = torch.stack(expected, 1)
    torch.testing.assert_close(torch.stack(found).double(), expected, rtol=1e-5, atol=1e-6)
    weights = torch.linspace(0.5, 2, 6).view(2, 3)
    gradients = [
        torch.autograd.grad((weights * value).sum(), logits)[0]
        for value in (torch.stack(found), expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


# The reference version


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("term", TERMS, ids=str)
def test_the_reference_version_has_the_same_sums_and_gradients(ignored, term):
    masks = [random_masks(count, (9, 10), seed=count) > 0 for count in (2, 3)]
    valid = [random_masks(1, (9, 10), seed=7 + i)[0] > 0 for i in range(2)] if ignored else None
    layers = [random_masks(8, (4, 5), seed).view(2, 4, 4, 5).double() for seed in (7, 8)]
    for layer in layers:
        layer.requires_grad_()
    index = torch.tensor
    sections = [
        Section(0, 0, index([3, 1]), index([0, 1])),
        Section(0, 1, index([], dtype=torch.int64), index([], dtype=torch.int64)),
        Section(1, 1, index([2]), index([2])),
    ]
    found, expected = (
        sums(term, layers, masks, sections, valid)
        for sums in (dense_mask_sums, dense_mask_sums_reference)
    )
    for one, other in zip(found[:4], expected[:4], strict=True):
        torch.testing.assert_close(one, other)
    gradients = [torch.autograd.grad(sums.term.sum(), layers) for sums in (found, expected)]
    torch.testing.assert_close(*gradients)


# Helpers


def test_softplus_is_accurate_over_all_of_fp32():
    x = torch.cat([torch.linspace(-120, 120, 4801), torch.tensor([-1e4, 1e4, 3e38, -3e38])])
    expected = F.softplus(x.double())
    found = softplus(x, x.neg().sigmoid()).double()
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("term", TERMS, ids=str)
def test_left_out_pixels_add_exactly_0(term):
    logits = leave_out(torch.randn(2, 5, requires_grad=True), torch.zeros(5).bool())
    assert term.loss(logits, torch.zeros(2, 5)).sum().item() == 0.0
    assert logits.sigmoid().sum().item() == 0.0
