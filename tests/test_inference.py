"""Semantic, panoptic and instance results are the published figures and what the formulas say."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mask_former import inference
from mask_former.inference import (
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_inference,
    semantic_map,
)
from tests import references
from tests.core_cases import (
    FULL_SIZE,
    PANOPTIC_CASES,
    THINGS,
    LargestTensor,
    inference_figures,
    inference_inputs,
)
from tests.golden_cases import load_case

PUBLISHED_KEYS = ("id", "isthing", "category_id")
COCO_THINGS = range(80)
each_panoptic_case = pytest.mark.parametrize("name", PANOPTIC_CASES)

# The published figures


@pytest.fixture(scope="module")
def golden(shared_dir):
    facts, arrays = load_case("inference_functions", shared_dir / "golden")
    mask_cls, mask_pred = (torch.from_numpy(arrays[name]) for name in ("mask_cls", "mask_pred"))
    size = tuple(facts["full_size"])
    return SimpleNamespace(
        cls=mask_cls, pred=mask_pred, size=size, cases=facts["cases"], arrays=arrays
    )


def test_the_semantic_result_is_the_published_one(golden):
    semantic = semantic_inference(golden.cls, golden.pred, golden.size)[:, ::5, ::5].numpy()
    np.testing.assert_allclose(semantic, golden.arrays["semantic_every5"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["default", "loose", "all", "none"])
def test_the_panoptic_result_is_the_published_one(golden, name):
    expected = golden.cases[name]
    ids, segments = panoptic_inference(
        golden.cls,
        golden.pred,
        thing_ids=COCO_THINGS,
        object_mask_threshold=expected["object_mask_threshold"],
        overlap_threshold=expected["overlap_threshold"],
        size=golden.size,
    )
    assert (ids.numpy() != golden.arrays[f"panoptic_{name}"]).mean() <= 1e-4
    found = [{key: segment[key] for key in PUBLISHED_KEYS} for segment in segments]
    assert found == expected["segments_info"]


def test_all_results_are_the_carried_ones():
    facts, arrays = inference_figures()
    expected, expected_arrays = load_case("inference_functions")
    np.testing.assert_allclose(arrays["semantic"], expected_arrays["semantic"], rtol=1e-4)
    for name in expected_arrays.keys() - {"semantic"}:
        np.testing.assert_array_equal(arrays[name], expected_arrays[name], err_msg=name)
    for name, case in expected["cases"].items():
        for found, segment in zip(
            facts["cases"][name]["segments_info"], case["segments_info"], strict=True
        ):
            assert found == pytest.approx(segment, rel=1e-4), name
    for name, values in expected["instances"].items():
        for found, value in zip(facts["instances"][name], values, strict=True):
            assert found == pytest.approx(value, rel=1e-4), name


# The formulas


@pytest.fixture(scope="module")
def case():
    """The carried inputs and, for the loops, the same with the masks enlarged by a loop."""
    mask_cls, mask_pred = inference_inputs()
    full = references.enlarge(mask_pred.double(), FULL_SIZE)
    return SimpleNamespace(cls=mask_cls, pred=mask_pred, full=full)


def test_masks_are_enlarged_as_the_loop_does(case):
    found = resize_masks(case.pred, FULL_SIZE)
    torch.testing.assert_close(found, case.full.float(), rtol=1e-4, atol=1e-5)
    assert resize_masks(case.pred, None) is case.pred
    assert resize_masks(case.pred, (10, 13)) is case.pred
    assert resize_masks(case.pred[:0], FULL_SIZE).shape == (0, *FULL_SIZE)


def test_the_semantic_result_is_the_sum_over_queries(case):
    found = semantic_inference(case.cls, case.pred, FULL_SIZE)
    expected = references.semantic(case.cls, case.full).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@each_panoptic_case
def test_the_panoptic_result_is_that_of_the_loop(case, name):
    options = {"thing_ids": THINGS, **PANOPTIC_CASES[name]}
    ids, segments = panoptic_inference(case.cls, case.pred, size=FULL_SIZE, **options)
    expected_ids, expected = references.panoptic(case.cls, case.full, **options)
    assert torch.equal(ids, expected_ids)
    assert [{k: s[k] for k in PUBLISHED_KEYS} for s in segments] == [
        {k: s[k] for k in PUBLISHED_KEYS} for s in expected
    ]
    scores = [segment["score"] for segment in expected]
    assert [segment["score"] for segment in segments] == pytest.approx(scores, rel=1e-5)


@pytest.mark.parametrize("thing_ids", [None, THINGS, (5,), ()], ids=str)
@pytest.mark.parametrize("topk", [1, 9, 40, 1000])
def test_the_instances_are_those_of_the_loop(case, topk, thing_ids):
    found = instance_inference(case.cls, case.pred, topk=topk, thing_ids=thing_ids, size=FULL_SIZE)
    expected = references.instances(case.cls, case.full, topk=topk, thing_ids=thing_ids)
    # The order is not promised; (class, score) tells the pairs apart.
    rows = sorted(range(len(found)), key=lambda i: (found.pred_classes[i], found.scores[i]))
    expected.sort(key=lambda pair: (pair["label"], pair["score"]))
    assert len(found) == len(expected)
    for row, pair in zip(rows, expected, strict=True):
        assert found.pred_classes[row] == pair["label"]
        assert found.scores[row].item() == pytest.approx(pair["score"], rel=1e-4)
        assert found.pred_masks[row].tolist() == pair["mask"]
        assert found.pred_boxes.tensor[row].tolist() == pair["box"]


# The map of best classes


@pytest.mark.parametrize("size", [None, FULL_SIZE, (300, 401)], ids=str)
def test_the_map_has_the_best_class_of_the_semantic_result(case, size):
    if size and size[0] > 100:
        assert size[0] * size[1] > inference._BAND_PIXELS
    found = semantic_map(case.cls, case.pred, size)
    semantic = semantic_inference(case.cls, case.pred, size)
    assert found.dtype == torch.int64 and found.shape == semantic.shape[1:]
    reached = semantic.gather(0, found[None])[0]  # the best, but for rounding at a tie
    torch.testing.assert_close(reached, semantic.amax(0), rtol=1e-5, atol=0)
    assert (found != semantic.argmax(0)).float().mean() <= 1e-4


@pytest.mark.parametrize("band", [1, 100, 743, 744, 745])
def test_the_map_does_not_depend_on_its_bands(case, band, monkeypatch):
    expected = semantic_map(case.cls, case.pred, FULL_SIZE)
    monkeypatch.setattr(inference, "_BAND_PIXELS", band)
    assert torch.equal(semantic_map(case.cls, case.pred, FULL_SIZE), expected)


def test_the_map_never_holds_every_class_of_every_pixel(monkeypatch):
    monkeypatch.setattr(inference, "_BAND_PIXELS", 64)
    classes, queries, pixels = 50, 3, 32 * 32
    mask_cls, mask_pred = torch.randn(queries, classes + 1), torch.randn(queries, 8, 8)
    with LargestTensor() as largest:
        semantic_map(mask_cls, mask_pred, (32, 32))
    assert 0 < largest.elements <= max(queries * pixels, classes * 64)
