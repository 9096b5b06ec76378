"""Panoptic and instance results of small scenes, one per rule; empty and nonfinite inputs.

Classes 0 and 1 are things, 2 and 3 stuff, 4 is "no object".
"""

import math

import pytest
import torch

from mask_former.inference import (
    instance_inference,
    panoptic_inference,
    resize_masks,
    semantic_inference,
    semantic_map,
)
from tests.helpers.core_cases import THINGS, inference_inputs


def class_logits(*labels, logit=6.0):
    """Return class logits: query i predicts ``labels[i]``, or (label, logit) with that logit."""
    pairs = [label if isinstance(label, tuple) else (label, logit) for label in labels]
    mask_cls = torch.zeros(len(pairs), 5)
    for query, (label, value) in enumerate(pairs):
        mask_cls[query, label] = value
    return mask_cls


def columns(*spans, width=8, logit=10.0):
    """Return mask logits Q×2×``width``: query i covers columns ``start … stop-1`` of span i."""
    masks = torch.full((len(spans), 2, width), -logit)
    for query, (start, stop) in enumerate(spans):
        masks[query, :, start:stop] = logit
    return masks


def segment(mask_cls, mask_pred, *, thing_ids=(0, 1), score=0.5, overlap=0.5, **options):
    """Return the segment id of each column, and the segments."""
    ids, segments = panoptic_inference(
        mask_cls,
        mask_pred,
        thing_ids=thing_ids,
        object_mask_threshold=score,
        overlap_threshold=overlap,
        **options,
    )
    assert ids.dtype == torch.int32
    assert (ids[0] == ids).all()
    return ids[0].tolist(), segments


def test_ids_count_from_1_in_query_order():
    ids, segments = segment(class_logits(2, 0, 0), columns((0, 4), (4, 6), (6, 8)))
    assert ids == [1, 1, 1, 1, 2, 2, 3, 3]
    assert [info["id"] for info in segments] == [1, 2, 3]
    assert [info["category_id"] for info in segments] == [2, 0, 0]


def test_isthing_is_a_python_bool():
    _, segments = segment(class_logits(2, 0), columns((0, 4), (4, 8)))
    assert segments[0]["isthing"] is False and segments[1]["isthing"] is True


def test_listed_classes_are_things_and_all_others_are_stuff():
    for things in ((), (2,), [0, 2, 3]):
        _, segments = segment(class_logits(2, 0), columns((0, 4), (4, 8)), thing_ids=iter(things))
        assert [info["isthing"] for info in segments] == [2 in things, 0 in things]


def test_stuff_of_one_class_merges_and_things_do_not():
    ids, segments = segment(
        class_logits(2, 0, 3, 2, 0), columns((0, 1), (1, 2), (2, 4), (4, 6), (6, 8))
    )
    assert ids == [1, 2, 3, 3, 1, 1, 4, 4]
    assert [info["category_id"] for info in segments] == [2, 0, 3, 0]


def test_a_merged_segment_has_the_largest_score_of_its_queries():
    mask_cls = class_logits((2, 4.0), (2, 9.0), (2, 5.0))
    _, segments = segment(mask_cls, columns((0, 3), (3, 5), (5, 8)))
    assert [info["score"] for info in segments] == [mask_cls.softmax(-1).max().item()]


def test_the_classes_to_merge_can_be_chosen():
    mask_cls, mask_pred = class_logits(2, 0, 2, 0), columns((0, 2), (2, 4), (4, 6), (6, 8))
    ids, segments = segment(mask_cls, mask_pred, label_ids_to_fuse=[0])
    assert ids == [1, 1, 2, 2, 3, 3, 2, 2]
    assert [info["isthing"] for info in segments] == [False, True, False]
    assert segment(mask_cls, mask_pred, label_ids_to_fuse=[])[0] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert segment(mask_cls, mask_pred, label_ids_to_fuse=[0, 2])[0] == [1, 1, 2, 2, 1, 1, 2, 2]


@pytest.mark.parametrize("overlap, ids", [(0.5, [1] * 6 + [2] * 2), (0.51, [1] * 6 + [0] * 2)])
def test_a_query_that_wins_too_little_of_its_mask_becomes_void(overlap, ids):
    # The second query covers four columns and wins two.
    found, segments = segment(class_logits((0, 9.0), 1), columns((0, 6), (4, 8)), overlap=overlap)
    assert found == ids
    assert len(segments) == max(ids)


def test_with_mask2formers_rule_pixels_outside_the_mask_of_their_query_are_void():
    masks = columns((0, 4), (4, 6))  # columns 6 and 7 lie in no mask
    mask_cls = class_logits((0, 9.0), 1)
    assert segment(mask_cls, masks)[0] == [1, 1, 1, 1, 2, 2, 1, 1]
    ids, segments = segment(mask_cls, masks, segment_within_mask=True)
    assert ids == [1, 1, 1, 1, 2, 2, 0, 0]
    assert [info["id"] for info in segments] == [1, 2]


def test_with_mask2formers_rule_a_query_that_wins_only_outside_its_mask_is_dropped():
    # Query 0 covers columns 0 … 3, which query 1 wins, and wins columns 4 … 7, outside its mask.
    masks = torch.tensor([[0.1] * 4 + [-0.1] * 4, [10.0] * 4 + [-10.0] * 4])
    masks = masks[:, None].repeat(1, 2, 1)
    mask_cls = class_logits((0, 9.0), (1, 8.0))
    assert segment(mask_cls, masks)[0] == [2] * 4 + [1] * 4
    ids, segments = segment(mask_cls, masks, segment_within_mask=True)
    assert ids == [1] * 4 + [0] * 4
    assert [info["category_id"] for info in segments] == [1]


def test_the_share_that_a_query_wins_counts_pixels_outside_its_mask():
    # Query 0 wins 2 of its 4 columns and the 2 columns outside all masks: 4 / 4.
    masks = torch.tensor([[0.1] * 4 + [-5.0] * 2, [-9.0] * 2 + [9.0] * 2 + [-9.0] * 2])
    masks = masks[:, None].repeat(1, 2, 1)
    ids, _ = segment(class_logits(0, 1), masks, overlap=0.9, segment_within_mask=True)
    assert ids == [1, 1, 2, 2, 0, 0]


def test_an_object_of_one_pixel_is_found():
    masks = columns((0, 8), (0, 0))
    masks[1, 1, 3] = 10.0
    masks[0, 1, 3] = -10.0
    ids, segments = panoptic_inference(
        class_logits(2, 0), masks, thing_ids=(0,), object_mask_threshold=0.5, overlap_threshold=0.5
    )
    assert (ids == 2).nonzero().tolist() == [[1, 3]]
    assert [info["category_id"] for info in segments] == [2, 0]


def test_ids_have_no_gap_when_a_query_is_dropped():
    mask_cls = class_logits((0, 9.0), 1, 0)
    ids, segments = segment(mask_cls, columns((0, 5), (3, 6), (6, 8)), overlap=0.8)
    assert ids == [1, 1, 1, 1, 1, 0, 2, 2]
    assert [info["category_id"] for info in segments] == [0, 0]


def test_a_query_whose_mask_is_empty_gets_no_segment():
    faint = torch.full((2, 2, 8), -1.0)  # wins pixels, but never exceeds probability one half
    faint[1] = -9.0
    assert segment(class_logits(0, 1), faint, overlap=0.0) == ([0] * 8, [])


def test_a_no_object_query_gets_no_segment():
    ids, segments = segment(class_logits(4, 0), columns((0, 8), (4, 8)))
    assert [info["category_id"] for info in segments] == [0]
    assert ids[4:] == [1] * 4


def test_a_query_must_be_above_the_threshold_not_at_it():
    mask_cls = torch.tensor([[0.0, -math.inf, -math.inf, -math.inf, 0.0]])  # one half each
    assert segment(mask_cls, columns((0, 8)), score=0.5) == ([0] * 8, [])
    assert segment(mask_cls, columns((0, 8)), score=0.499)[0] == [1] * 8


@pytest.mark.parametrize("size", [None, (5, 9)])
def test_without_a_kept_query_every_pixel_is_void(size):
    ids, segments = segment(class_logits(4, 4), columns((0, 8), (0, 8)), size=size)
    assert ids == [0] * (size[1] if size else 8) and segments == []


def test_of_two_equal_queries_the_first_wins():
    ids, segments = segment(class_logits(0, 1), columns((0, 8), (0, 8)), overlap=0.0)
    assert ids == [1] * 8
    assert [info["category_id"] for info in segments] == [0]


def test_masks_are_upsampled_before_pixels_are_assigned():
    mask_cls, mask_pred = inference_inputs()
    options = {"thing_ids": THINGS, "object_mask_threshold": 0.3, "overlap_threshold": 0.6}
    first, segments = panoptic_inference(mask_cls, mask_pred, size=(40, 50), **options)
    second, others = panoptic_inference(mask_cls, resize_masks(mask_pred, (40, 50)), **options)
    assert first.shape == (40, 50)
    assert torch.equal(first, second) and segments == others


# Instances


def test_the_best_pairs_are_chosen_before_stuff_is_dropped():
    mask_cls = class_logits((2, 9.0), (3, 8.0), (0, 7.0), (1, 6.0))
    mask_pred = columns((0, 2), (2, 4), (4, 6), (6, 8))
    found = instance_inference(mask_cls, mask_pred, topk=3, thing_ids=[0, 1])
    assert found.pred_classes.tolist() == [0]
    assert len(instance_inference(mask_cls, mask_pred, topk=3)) == 3


def test_a_query_may_give_instances_of_several_classes():
    mask_cls = torch.tensor([[5.0, 5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 9.0]])
    found = instance_inference(mask_cls, columns((0, 3), (3, 8)), topk=2)
    assert sorted(found.pred_classes.tolist()) == [0, 1]
    assert torch.equal(found.pred_masks[0], found.pred_masks[1])


def test_boxes_are_tight_with_exclusive_right_and_bottom():
    mask_pred = torch.full((2, 6, 9), -5.0)
    mask_pred[0, 2, 4] = 5.0  # one pixel
    mask_pred[1, 1:4, 3:] = 5.0
    mask_pred[1, 5, 8] = 5.0  # detached from the other pixels
    found = instance_inference(class_logits(0, 1), mask_pred, topk=2)
    boxes = dict(zip(found.pred_classes.tolist(), found.pred_boxes.tensor.tolist(), strict=True))
    assert boxes == {0: [4, 2, 5, 3], 1: [3, 1, 9, 6]}


def test_a_score_is_class_probability_times_mean_mask_probability_inside():
    mask_pred = torch.tensor([[[2.0, 0.5, -3.0], [0.0, -0.1, -9.0]]])  # 0 is not inside
    found = instance_inference(class_logits((1, 3.0)), mask_pred, topk=1)
    probability = math.exp(3) / (math.exp(3) + 4)
    inside = (1 / (1 + math.exp(-2)) + 1 / (1 + math.exp(-0.5))) / 2
    assert found.scores.item() == pytest.approx(probability * inside, rel=1e-6)
    assert found.pred_masks.tolist() == [[[True, True, False], [False, False, False]]]


def test_an_empty_mask_scores_zero_and_has_an_empty_box():
    found = instance_inference(class_logits(0), torch.full((1, 4, 4), -3.0), topk=1)
    assert found.scores.tolist() == [0.0]
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 0, 0]]
    assert not found.pred_masks.any()


def assert_is_instances(found, count, size):
    assert found.image_size == size and len(found) == count
    assert found.pred_masks.dtype == torch.bool and found.pred_masks.shape == (count, *size)
    assert found.pred_boxes.tensor.shape == (count, 4)
    assert found.scores.dtype == torch.float32 and found.scores.shape == (count,)
    assert found.pred_classes.dtype == torch.int64 and found.pred_classes.shape == (count,)


def test_topk_is_limited_to_the_number_of_pairs():
    found = instance_inference(class_logits(0, 1, 2), columns((0, 2), (2, 4), (4, 8)), topk=1000)
    assert_is_instances(found, 3 * 4, (2, 8))


@pytest.mark.parametrize("size", [None, (5, 9)])
@pytest.mark.parametrize("thing_ids", [(), (1,)], ids=["no class is a thing", "no thing is found"])
def test_without_things_the_instances_are_empty_but_complete(thing_ids, size):
    mask_cls, mask_pred = class_logits((2, 9.0), (3, 9.0)), columns((0, 4), (4, 8))
    found = instance_inference(mask_cls, mask_pred, topk=2, thing_ids=thing_ids, size=size)
    assert_is_instances(found, 0, size or (2, 8))


# Empty and nonfinite inputs


def test_without_queries_results_are_empty():
    mask_cls, mask_pred, size = torch.zeros(0, 5), torch.zeros(0, 3, 4), (6, 8)
    assert (semantic_inference(mask_cls, mask_pred, size) == torch.zeros(4, *size)).all()
    assert semantic_map(mask_cls, mask_pred, size).shape == size
    assert segment(mask_cls, mask_pred, size=size) == ([0] * 8, [])
    assert_is_instances(instance_inference(mask_cls, mask_pred, topk=5, size=size), 0, size)


def test_infinite_mask_logits_mean_certainty():
    mask_cls, finite = class_logits(0, 2), columns((0, 4), (4, 8), logit=200.0)
    infinite = finite.sign() * math.inf
    for function in (semantic_inference, semantic_map):
        assert torch.equal(function(mask_cls, infinite), function(mask_cls, finite))
    assert segment(mask_cls, infinite) == segment(mask_cls, finite)
    certain, expected = (instance_inference(mask_cls, m, topk=8) for m in (infinite, finite))
    assert torch.equal(certain.scores, expected.scores)
    assert torch.equal(certain.pred_masks, expected.pred_masks)


def test_a_class_with_logit_minus_infinity_is_never_chosen():
    mask_cls = class_logits(0, 2)
    mask_cls[0, 1] = mask_cls[1, 0] = -math.inf
    ids, segments = segment(mask_cls, columns((0, 4), (4, 8)))
    assert ids == [1] * 4 + [2] * 4
    assert [info["category_id"] for info in segments] == [0, 2]
    assert semantic_inference(mask_cls, columns((0, 4), (4, 8))).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_query_with_nonfinite_class_logits_gets_no_segment_and_affects_no_other(value):
    mask_cls = class_logits(0, 2, 1)
    mask_cls[2, 1] = value
    ids, segments = segment(mask_cls, columns((0, 4), (4, 8), (0, 8)))
    assert ids == [1] * 4 + [2] * 4
    assert [info["category_id"] for info in segments] == [0, 2]


@pytest.mark.parametrize("broken", ["mask_cls", "mask_pred"])
def test_nan_shows_in_the_semantic_result(broken):
    inputs = {"mask_cls": class_logits(0, 2), "mask_pred": columns((0, 4), (4, 8))}
    inputs[broken][0, 0] = math.nan
    assert semantic_inference(**inputs).isnan().any()
