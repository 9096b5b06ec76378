"""Semantic, panoptic and instance results match the published figures and the formulas."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.modeling.postprocessing import sem_seg_postprocess

from mask_former.inference import (
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_inference,
    semantic_map,
)
from mask_former.inference import semantic as semantic_module
from mask_former.ops import LazyMasks, lazy_masks
from tests.helpers import references
from tests.helpers.core_cases import (
    FULL_SIZE,
    PANOPTIC_CASES,
    THINGS,
    LargestTensor,
    inference_figures,
    inference_inputs,
    random_masks,
)
from tests.helpers.golden_cases import load_case
from tests.helpers.memory import peak_ratio

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


def test_the_semantic_result_matches_the_published_one(golden):
    semantic = semantic_inference(golden.cls, golden.pred, golden.size)[:, ::5, ::5].numpy()
    np.testing.assert_allclose(semantic, golden.arrays["semantic_every5"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["default", "loose", "all", "none"])
def test_the_panoptic_result_matches_the_published_one(golden, name):
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


def test_all_results_match_the_figures_in_the_repository():
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
    """Seeded inputs, and their masks upsampled by a reference loop."""
    mask_cls, mask_pred = inference_inputs()
    full = references.upsample(mask_pred.double(), FULL_SIZE)
    return SimpleNamespace(cls=mask_cls, pred=mask_pred, full=full)


def test_upsampled_masks_match_the_reference_loop(case):
    found = resize_masks(case.pred, FULL_SIZE)
    torch.testing.assert_close(found, case.full.float(), rtol=1e-4, atol=1e-5)
    assert resize_masks(case.pred, None) is case.pred
    assert resize_masks(case.pred, (10, 13)) is case.pred
    assert resize_masks(case.pred[:0], FULL_SIZE).shape == (0, *FULL_SIZE)


def test_the_semantic_result_matches_the_sum_over_queries(case):
    found = semantic_inference(case.cls, case.pred, FULL_SIZE)
    expected = references.semantic(case.cls, case.full).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@each_panoptic_case
@pytest.mark.parametrize("within", [False, True], ids=["whole", "within the mask"])
def test_the_panoptic_result_equals_that_of_the_reference_loop(case, name, within):
    options = {"thing_ids": THINGS, "segment_within_mask": within, **PANOPTIC_CASES[name]}
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
def test_the_instances_equal_those_of_the_reference_loop(case, topk, thing_ids):
    found = instance_inference(case.cls, case.pred, topk=topk, thing_ids=thing_ids, size=FULL_SIZE)
    expected = references.instances(case.cls, case.full, topk=topk, thing_ids=thing_ids)
    # The order is unspecified; (class, score) identifies a pair.
    rows = sorted(range(len(found)), key=lambda i: (found.pred_classes[i], found.scores[i]))
    expected.sort(key=lambda pair: (pair["label"], pair["score"]))
    assert len(found) == len(expected)
    for row, pair in zip(rows, expected, strict=True):
        assert found.pred_classes[row] == pair["label"]
        assert found.scores[row].item() == pytest.approx(pair["score"], rel=1e-4)
        assert found.pred_masks[row].tolist() == pair["mask"]
        assert found.pred_boxes.tensor[row].tolist() == pair["box"]


# The map of best classes


def assert_is_the_best_class(found, semantic):
    assert found.dtype == torch.int64 and found.shape == semantic.shape[1:]
    reached = semantic.gather(0, found[None])[0]  # the best, except for rounding at ties
    torch.testing.assert_close(reached, semantic.amax(0), rtol=1e-5, atol=0)
    assert (found != semantic.argmax(0)).float().mean() <= 1e-4


@pytest.mark.parametrize("size", [None, FULL_SIZE, (300, 401)], ids=str)
def test_the_map_holds_the_best_class_of_the_semantic_result(case, size):
    found = semantic_map(case.cls, case.pred, size)
    assert_is_the_best_class(found, semantic_inference(case.cls, case.pred, size))


def trained_like(queries=40, classes=9, confident=8, no_object=5.0, seed=3):
    """Return logits in which all but ``confident`` queries are "no object" by ``no_object``."""
    g = torch.Generator().manual_seed(seed)
    mask_cls = torch.randn(queries, classes + 1, generator=g)
    mask_cls[:, -1] += no_object
    label = torch.randint(classes, (confident,), generator=g)
    mask_cls[torch.randperm(queries, generator=g)[:confident], label] += no_object + 7
    return mask_cls, random_masks(queries, (10, 13), seed, scale=8.0) - 2


# The other queries add little, some, or so much that they cannot be left out at first.
@pytest.mark.parametrize("no_object, left_out", [(14.0, True), (8.6, True), (3.0, False)])
@pytest.mark.parametrize("size", [FULL_SIZE, (97, 120)], ids=str)
def test_the_map_includes_queries_left_out_at_first(no_object, left_out, size, monkeypatch):
    mask_cls, mask_pred = trained_like(no_object=no_object)
    probability = semantic_module.class_probability(mask_cls)
    kept, spare = semantic_module._queries_that_matter(probability)
    assert (len(kept) < 20) == left_out == (spare > 0)
    not_kept = probability.double().index_fill(1, kept, 0)
    assert not_kept.sum(1).max() <= spare, (
        "an upper bound of what a class gains from queries left out"
    )
    semantic = semantic_inference(mask_cls, mask_pred, size)
    assert_is_the_best_class(semantic_map(mask_cls, mask_pred, size), semantic)


@pytest.mark.parametrize("share", ["few pixels", "whole bands"])
def test_pixels_that_the_kept_queries_leave_undecided_use_all_queries(share, monkeypatch):
    # Query 0 predicts class 0 inside its mask; queries 1 to 19 predict class 1 with low scores.
    mask_cls = torch.full((20, 3), -20.0)
    mask_cls[0, 0] = 0.0
    mask_cls[1:, 1], mask_cls[:, 2] = -7.6, 0.0
    mask_pred = torch.full((20, 8, 16), 9.0)
    covered = 15 if share == "few pixels" else 4
    mask_pred[0, :, covered:] = -9.0
    kept, spare = semantic_module._queries_that_matter(semantic_module.class_probability(mask_cls))
    assert kept.tolist() == [0] and 0.009 < spare < 0.011
    calls = []
    at = LazyMasks.at
    monkeypatch.setattr(LazyMasks, "at", lambda *args: calls.append(1) or at(*args))
    found = semantic_map(mask_cls, mask_pred)
    assert found.tolist() == [[0] * covered + [1] * (16 - covered)] * 8
    assert bool(calls) == (share == "few pixels")


@pytest.mark.parametrize("elements", [1, 100, 743, 744, 745])
def test_no_result_depends_on_the_bands(case, elements, monkeypatch):
    def results():
        options = {"thing_ids": THINGS, **PANOPTIC_CASES["loose"]}
        found = instance_inference(case.cls, case.pred, topk=9, size=FULL_SIZE)
        return [
            semantic_inference(case.cls, case.pred, FULL_SIZE),
            semantic_map(case.cls, case.pred, FULL_SIZE),
            panoptic_inference(case.cls, case.pred, size=FULL_SIZE, **options)[0],
            found.pred_masks,
            found.pred_boxes.tensor,
            found.scores,
        ]

    expected = results()
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", elements)
    torch.testing.assert_close(results(), expected, rtol=1e-5, atol=1e-6)


# Memory


@pytest.mark.parametrize("function", ["map", "panoptic", "instances"])
def test_no_tensor_has_every_mask_or_class_at_full_size(function, monkeypatch):
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", 64 * 50)
    queries, pixels = 30, 64 * 64
    mask_cls, mask_pred = 3 * torch.randn(queries, 51), torch.randn(queries, 8, 8)
    calls = {
        "map": lambda: semantic_map(mask_cls, mask_pred, (64, 64)),
        "panoptic": lambda: panoptic_inference(
            mask_cls,
            mask_pred,
            thing_ids=(),
            object_mask_threshold=0.0,
            overlap_threshold=0.0,
            size=(64, 64),
        ),
        "instances": lambda: instance_inference(mask_cls, mask_pred, topk=3, size=(64, 64)),
    }
    results = 3 * pixels if function == "instances" else pixels
    with LargestTensor() as largest:
        calls[function]()
    assert 0 < largest.elements <= results


PEAK = """
import torch
from mask_former.inference import semantic_inference
torch.manual_seed(0)
mask_cls, mask_pred = torch.randn(100, 151), torch.randn(100, 128, 128)
semantic_inference(mask_cls, mask_pred, (4, 4))  # loads libraries
before = memory("VmRSS")
result = semantic_inference(mask_cls, mask_pred, (512, 512))
ratio = (memory("VmHWM") - before) / (result.numel() * 4)
"""


@pytest.mark.subprocess
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_computing_the_semantic_result_takes_little_more_memory_than_its_size():
    assert 1.0 <= peak_ratio(PEAK) < 1.5


# Number formats, layouts, gradients


@pytest.mark.parametrize("result_size", [None, (20, 30), (9, 11), (50, 60)], ids=str)
def test_a_semantic_result_can_be_resized(case, result_size):
    masks = LazyMasks(case.pred).resize(FULL_SIZE).crop((20, 30))
    found = semantic_inference(case.cls, masks, result_size=result_size)
    whole = semantic_inference(case.cls, case.pred, FULL_SIZE)
    expected = sem_seg_postprocess(whole, (20, 30), *(result_size or (20, 30)))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "dtype, rtol", [(torch.bfloat16, 0.02), (torch.float16, 1e-4), (torch.float64, 1e-4)]
)
def test_results_are_computed_in_fp32_for_every_input_type(case, dtype, rtol):
    mask_cls, mask_pred = case.cls.to(dtype), case.pred.to(dtype)
    exact = mask_cls.float(), mask_pred.float()
    found = semantic_inference(mask_cls, mask_pred, FULL_SIZE)
    assert found.dtype == torch.float32
    expected = semantic_inference(*exact, FULL_SIZE)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=1e-6)
    assert torch.equal(
        semantic_map(mask_cls, mask_pred, FULL_SIZE), semantic_map(*exact, FULL_SIZE)
    )
    instances, expected = (
        instance_inference(*inputs, topk=9, size=FULL_SIZE)
        for inputs in ((mask_cls, mask_pred), exact)
    )
    assert instances.scores.dtype == torch.float32
    assert torch.equal(instances.scores, expected.scores)


def test_a_callers_autocast_changes_nothing(case):
    expected = semantic_inference(case.cls, case.pred, FULL_SIZE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = semantic_inference(case.cls, mask_pred=case.pred, size=FULL_SIZE)
        assert torch.equal(
            semantic_map(mask_cls=case.cls, mask_pred=case.pred, size=FULL_SIZE),
            expected.argmax(0),
        )
    assert torch.equal(found, expected)


def test_inputs_are_not_modified(case):
    # A band of a single query or row keeps its memory layout, and so its storage, when transposed.
    for queries, rows in ((1, 10), (14, 1)):
        mask_cls, mask_pred = case.cls[:queries].clone(), case.pred[:queries, :rows].clone()
        before = mask_cls.clone(), mask_pred.clone()
        semantic_inference(mask_cls, mask_pred)
        semantic_map(mask_cls, mask_pred)
        panoptic_inference(
            mask_cls, mask_pred, thing_ids=(), object_mask_threshold=0, overlap_threshold=0
        )
        instance_inference(mask_cls, mask_pred, topk=5)
        assert torch.equal(mask_cls, before[0]) and torch.equal(mask_pred, before[1])


def test_the_semantic_result_can_be_differentiated(case):
    mask_cls, mask_pred = case.cls.clone().requires_grad_(), case.pred.clone().requires_grad_()
    found = semantic_inference(mask_cls, mask_pred, FULL_SIZE)
    with torch.no_grad():
        torch.testing.assert_close(found, semantic_inference(mask_cls, mask_pred, FULL_SIZE))
    found.square().sum().backward()
    other_cls, other_pred = case.cls.clone().requires_grad_(), case.pred.clone().requires_grad_()
    masks = resize_masks(other_pred, FULL_SIZE).sigmoid()
    plain = torch.einsum("qc,qhw->chw", other_cls.softmax(-1)[:, :-1], masks)
    plain.square().sum().backward()
    torch.testing.assert_close(mask_cls.grad, other_cls.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mask_pred.grad, other_pred.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(
    torch.__version__.startswith("2.6."), reason="torch 2.6 exports what no_grad encloses as None"
)
def test_the_map_can_be_exported(case):
    class Map(torch.nn.Module):
        def forward(self, mask_cls, mask_pred):
            return semantic_map(mask_cls, mask_pred, FULL_SIZE)

    program = torch.export.export(Map(), (case.cls, case.pred), strict=False)
    found = program.module()(case.cls, case.pred)
    assert torch.equal(found, semantic_map(case.cls, case.pred, FULL_SIZE))
