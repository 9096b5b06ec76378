"""Results of ``ImageLogits`` equal those of the inference functions and of the formulas."""

import dataclasses
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling.postprocessing import sem_seg_postprocess

from mask_former.inference import (
    ImageLogits,
    instance_inference,
    panoptic_inference,
    semantic_inference,
    semantic_map,
    semantic_map_with_scores,
)
from mask_former.ops import lazy_masks
from tests.helpers import references
from tests.helpers.core_cases import FULL_SIZE, THINGS, LargestTensor, inference_inputs

PADDED, IMAGE, OUTPUT = (40, 52), (37, 50), (60, 45)
"""Padded, image and output size; the mask logits have 10×13 cells."""


@pytest.fixture(scope="module")
def case():
    mask_cls, mask_pred = inference_inputs()
    return SimpleNamespace(cls=mask_cls, pred=mask_pred)


def logits_of(case, *, before=False, output=OUTPUT):
    return ImageLogits(case.cls, case.pred, PADDED, IMAGE, output, before)


def resize(x, size):
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]


def image_masks(case):
    return resize(case.pred, PADDED)[:, : IMAGE[0], : IMAGE[1]]


def plain_scores(case, before):
    """Return K×H×W semantic scores, computed step by step without lazy masks."""
    masks = image_masks(case)
    masks = resize(masks, OUTPUT) if before else masks
    scores = torch.einsum("qk,qhw->khw", case.cls.softmax(-1)[:, :-1], masks.sigmoid())
    return scores if before else resize(scores, OUTPUT)


def assert_is_best(ids, shares, scores):
    """Check that ids and shares are those of K×H×W scores, except for rounding at ties."""
    assert ids.dtype == torch.int64 and shares.dtype == torch.float32
    assert ids.shape == shares.shape == scores.shape[1:]
    reached = scores.gather(0, ids[None])[0]
    torch.testing.assert_close(reached, scores.amax(0), rtol=1e-5, atol=0)
    assert (ids != scores.argmax(0)).float().mean() <= 1e-3
    torch.testing.assert_close(shares, scores.amax(0) / scores.sum(0), rtol=1e-5, atol=0)


# The map with its scores


@pytest.mark.parametrize("size", [None, FULL_SIZE], ids=str)
def test_the_share_is_that_of_the_best_class_in_the_sum_over_classes(case, size):
    full = case.pred if size is None else references.upsample(case.pred.double(), size)
    scores = references.semantic(case.cls, full).float()
    ids, shares = semantic_map_with_scores(case.cls, case.pred, size)
    assert_is_best(ids, shares, scores)
    assert shares.min() >= 1 / 6 and shares.max() <= 1


@pytest.mark.parametrize("result_size", [(20, 30), (9, 11), (50, 60)], ids=str)
def test_scores_are_resized_before_classes_are_compared(case, result_size):
    ids, shares = semantic_map_with_scores(case.cls, case.pred, FULL_SIZE, result_size=result_size)
    assert_is_best(
        ids, shares, resize(semantic_inference(case.cls, case.pred, FULL_SIZE), result_size)
    )


def test_the_classes_equal_those_of_the_map_without_scores(case):
    ids, _ = semantic_map_with_scores(case.cls, case.pred, (300, 401))
    assert (ids != semantic_map(case.cls, case.pred, (300, 401))).float().mean() <= 1e-4


@pytest.mark.parametrize("elements", [1, 743, 745])
def test_the_map_does_not_depend_on_the_bands(case, elements, monkeypatch):
    expected = semantic_map_with_scores(case.cls, case.pred, FULL_SIZE)
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", elements)
    found = semantic_map_with_scores(case.cls, case.pred, FULL_SIZE)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


def test_no_tensor_has_every_class_or_mask_at_full_size(monkeypatch):
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", 64 * 50)
    mask_cls, mask_pred = 3 * torch.randn(30, 51), torch.randn(30, 8, 8)
    with LargestTensor() as largest:
        semantic_map_with_scores(mask_cls, mask_pred, (64, 64))
    assert 0 < largest.elements <= 64 * 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_map_is_computed_in_fp32_for_every_input_type(case, dtype):
    rounded = case.cls.to(dtype), case.pred.to(dtype)
    found = semantic_map_with_scores(*rounded, FULL_SIZE)
    expected = semantic_map_with_scores(*(x.float() for x in rounded), FULL_SIZE)
    assert all(map(torch.equal, found, expected))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(map(torch.equal, semantic_map_with_scores(*rounded, FULL_SIZE), expected))


def test_the_share_is_0_outside_all_masks():
    mask_pred = torch.full((2, 1, 2), -math.inf)
    mask_pred[1, 0, 1] = 3.0
    ids, shares = semantic_map_with_scores(torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]), mask_pred)
    assert shares[0, 0] == 0 and shares[0, 1] > 0.99 and ids[0, 1] == 1


def test_nan_shows_in_the_share_and_only_at_its_own_pixels():
    mask_pred = torch.zeros(2, 2, 3)
    mask_pred[0, 1, 2] = math.nan
    ids, shares = semantic_map_with_scores(torch.randn(2, 4), mask_pred)
    assert shares.isnan().nonzero().tolist() == [[1, 2]]
    assert ids.min() >= 0 and ids.max() < 3


def test_without_queries_all_shares_are_0():
    ids, shares = semantic_map_with_scores(torch.zeros(0, 5), torch.zeros(0, 3, 4), (6, 8))
    assert ids.shape == (6, 8) and (shares == 0).all()


# The logits of an image


@pytest.mark.parametrize("before", [True, False])
def test_semantic_results_follow_the_configured_order(case, before):
    logits = logits_of(case, before=before)
    expected = plain_scores(case, before)
    torch.testing.assert_close(logits.semantic_scores(), expected, rtol=1e-5, atol=1e-6)
    assert_is_best(*logits.semantic_map(), logits.semantic_scores())


def test_the_two_orders_differ(case):
    assert not torch.allclose(plain_scores(case, True), plain_scores(case, False), atol=1e-3)


@pytest.mark.parametrize("before", [True, False])
def test_panoptic_and_instance_results_use_masks_of_the_output_size(case, before):
    logits, masks = logits_of(case, before=before), resize(image_masks(case), OUTPUT)
    options = {
        "thing_ids": THINGS,
        "object_mask_threshold": 0.5,
        "overlap_threshold": 0.3,
        "label_ids_to_fuse": [1, 4],
    }
    ids, segments = logits.panoptic(**options)
    expected_ids, expected = panoptic_inference(case.cls, masks, **options)
    assert segments == expected and len(segments) > 1
    assert torch.equal(ids, expected_ids)
    found = logits.instances(topk=9, thing_ids=THINGS)
    other = instance_inference(case.cls, masks, topk=9, thing_ids=THINGS)
    assert len(found) > 1 and found.image_size == OUTPUT
    assert torch.equal(found.pred_masks, other.pred_masks)
    torch.testing.assert_close(found.scores, other.scores)


def test_results_can_be_computed_again_with_other_thresholds(case):
    logits = logits_of(case)
    options = {"thing_ids": THINGS, "overlap_threshold": 0.0}
    counts = [
        len(logits.panoptic(object_mask_threshold=threshold, **options)[1])
        for threshold in (0.0, 0.9, 0.0)
    ]
    assert counts[0] == counts[2] > counts[1] > 0
    first, second = logits.semantic_map(), logits.semantic_map()
    first[0].fill_(-1)
    first[1].fill_(-1)
    assert all(map(torch.equal, second, logits.semantic_map()))


@pytest.mark.parametrize("output", [IMAGE, PADDED, (10, 13)], ids=str)
def test_every_result_has_the_output_size(case, output):
    logits = logits_of(case, output=output)
    assert logits.output_size == output and logits.num_classes == 6
    assert logits.semantic_scores().shape == (6, *output)
    assert [tuple(x.shape) for x in logits.semantic_map()] == [output, output]
    assert logits.instances(topk=5).image_size == output
    options = {"thing_ids": THINGS, "object_mask_threshold": 0.0, "overlap_threshold": 0.0}
    assert logits.panoptic(**options)[0].shape == output


def test_scores_equal_those_of_detectron2s_postprocessing(case):
    whole = semantic_inference(case.cls, resize(case.pred, PADDED))
    expected = sem_seg_postprocess(whole, IMAGE, *OUTPUT)
    torch.testing.assert_close(logits_of(case).semantic_scores(), expected, rtol=1e-5, atol=1e-6)


def test_image_logits_are_immutable(case):
    with pytest.raises(dataclasses.FrozenInstanceError):
        logits_of(case).output_size = (1, 1)
