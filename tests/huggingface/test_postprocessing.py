"""Encoding of maps and post-processing of logits, compared with slow loops over pixels."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from pycocotools import mask as coco_mask

from mask_former.huggingface.postprocessing import (
    encode,
    post_process_instance,
    post_process_panoptic,
    post_process_semantic,
)
from mask_former.inference import instance_inference, panoptic_inference, semantic_map
from mask_former.losses import HungarianMatcher, SetCriterion
from mask_former.ops import as_masks, lazy_masks

QUERIES, CLASSES = 8, 3


def random_outputs(batch=2, size=(6, 8), seed=0):
    g = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": 3 * torch.randn(batch, QUERIES, CLASSES + 1, generator=g),
        "pred_masks": 4 * torch.randn(batch, QUERIES, *size, generator=g),
    }


def striped_outputs(*logits, size=(4, 8)):
    """Return outputs of one image: query i has ``logits[i]`` and the i-th vertical stripe."""
    masks = torch.full((1, len(logits), *size), -9.0)
    for query, columns in enumerate(np.array_split(np.arange(size[1]), len(logits))):
        masks[0, query, :, columns] = 9
    return {"pred_logits": torch.tensor([logits], dtype=torch.float32), "pred_masks": masks}


# Targets


MAP = np.array([[0, 1, 1, 2], [0, 0, 255, 2]], np.uint8)


def targets_of(*args, **settings):
    return [
        {int(label): mask.int().tolist() for label, mask in zip(*t.values(), strict=True)}
        for t in encode(*args, **settings)
    ]


def test_each_value_of_a_semantic_map_is_a_target():
    (target,) = encode(MAP, ignore_index=255)
    assert target["labels"].dtype == torch.int64
    assert target["labels"].tolist() == [0, 1, 2]
    assert target["masks"].dtype == torch.bool
    for label, mask in zip(target["labels"], target["masks"], strict=True):
        assert np.array_equal(mask.numpy(), label.item() == MAP)


def test_do_reduce_labels_drops_0_and_subtracts_1():
    (target,) = encode(MAP, do_reduce_labels=True, ignore_index=254)
    assert target["labels"].tolist() == [0, 1]
    assert np.array_equal(target["masks"].numpy(), [MAP == 1, MAP == 2])


def test_instances_get_the_class_of_their_id_which_two_may_share():
    ids = np.array([[70000, 70000, 3], [3, 9, 9]])
    (target,) = encode(ids, {3: 1, 9: 0, 70000: 1})
    assert target["labels"].tolist() == [1, 0, 1]
    assert np.array_equal(target["masks"].numpy(), [ids == 3, ids == 9, ids == 70000])


def test_labels_of_instances_are_reduced_too():
    (target,) = encode(np.array([[0, 5, 6]]), {5: 1, 6: 2}, do_reduce_labels=True)
    assert target["labels"].tolist() == [0, 1]


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy, Image.fromarray])
def test_maps_may_be_arrays_tensors_or_pil_images(kind):
    assert targets_of([kind(MAP)]) == targets_of([MAP]) == targets_of(kind(MAP))


def test_masks_of_a_batch_are_padded_to_one_size_with_false():
    small, large = np.full((2, 5), 1), np.full((4, 3), 1)
    targets = encode([small, large])
    assert [tuple(t["masks"].shape) for t in targets] == [(1, 4, 5), (1, 4, 5)]
    assert [int(t["masks"].sum()) for t in targets] == [10, 12]
    assert targets[0]["masks"][0, :2].all()
    assert encode(small, size=(8, 8))[0]["masks"].shape == (1, 8, 8)


def test_a_map_without_labels_has_no_targets():
    (target,) = encode(np.full((2, 3), 255), ignore_index=255, with_valid=True)
    assert target["labels"].shape == (0,)
    assert target["masks"].shape == (0, 2, 3)
    assert not target["valid"].any()
    assert encode([]) == []


def test_valid_pixels_are_those_of_targets():
    (target,) = encode(MAP, ignore_index=255, size=(3, 4), with_valid=True)
    assert torch.equal(target["valid"], target["masks"].any(0))
    assert int(target["valid"].sum()) == 7


@pytest.mark.parametrize("with_valid", [False, True])
def test_the_criterion_accepts_the_targets(with_valid):
    maps = [np.array([[0, 1, 255]] * 8), np.array([[2] * 12] * 8)]
    targets = encode(maps, ignore_index=255, with_valid=with_valid)
    criterion = SetCriterion(CLASSES, HungarianMatcher(1.0, 20.0, 1.0), no_object_weight=0.1)
    losses = criterion({**random_outputs(size=(2, 3)), "aux_outputs": []}, targets)
    assert set(losses) == {"loss_ce", "loss_mask", "loss_dice"}
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    "arguments, error, expected",
    [
        ((np.zeros((2, 2, 3), int),), ValueError, "Segmentation map 0 is int64 of shape (2, 2, 3)"),
        ((np.zeros((2, 2)),), ValueError, "expected integers H×W"),
        (([MAP, MAP], [{}]), ValueError, "2 segmentation maps and 1 mappings"),
        (([MAP[:, :1], MAP], {0: 0, 1: 1}), KeyError, "map 1 has the instance ids [2, 255]"),
    ],
)
def test_invalid_maps_and_mappings_are_refused(arguments, error, expected):
    with pytest.raises(error) as caught:
        encode(*arguments)
    assert expected in caught.value.args[0]


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"num_classes": 3}, "the class ids [255]; expected ids in 0 … 2. Set ignore_index"),
        ({"size": (2, 3)}, "is (2, 4) (height, width), larger than the size to pad to, (2, 3)"),
    ],
)
def test_settings_that_do_not_fit_a_map_are_refused(settings, expected):
    with pytest.raises(ValueError) as caught:
        encode(MAP, **settings)
    assert expected in str(caught.value)


def test_a_negative_class_is_refused():
    with pytest.raises(ValueError, match=r"the class ids \[-1\]; expected ids not negative"):
        encode(np.array([[-1, 0]]))


# Semantic results


@pytest.mark.parametrize("sizes", [None, [(13, 20), (6, 3)], torch.tensor([[6, 8], [1, 30]])])
def test_the_semantic_map_is_the_best_class_of_resized_scores(sizes):
    outputs = random_outputs()
    found = post_process_semantic(outputs, sizes)
    for index, ids in enumerate(found):
        probability = outputs["pred_logits"][index].softmax(-1)[:, :-1]
        scores = torch.einsum("qk,qhw->khw", probability, outputs["pred_masks"][index].sigmoid())
        if sizes is not None:
            size = tuple(int(side) for side in sizes[index])
            scores = F.interpolate(scores[None], size, mode="bilinear", align_corners=False)[0]
        assert ids.dtype == torch.int64
        assert torch.equal(ids, scores.argmax(0))


# Panoptic results


def panoptic_by_loops(logits, masks, size, threshold, mask_threshold, overlap, fuse):
    """Return the ids of one image, and (id, class, whether fused, score) of each segment."""
    score, label = logits.softmax(-1).max(-1)
    probability = F.interpolate(masks.sigmoid()[None], size, mode="bilinear")[0]
    kept = [q for q in range(len(score)) if label[q] < CLASSES and score[q] > threshold]
    ids = torch.zeros(size, dtype=torch.int32)
    if not kept:
        return ids, []
    product = {q: score[q] * probability[q] for q in kept}
    owner = [
        [max(kept, key=lambda q: product[q][y, x]) for x in range(size[1])] for y in range(size[0])
    ]
    owner = torch.tensor(owner)
    segments = {}
    for q in kept:
        won, area = int((owner == q).sum()), int((product[q] >= mask_threshold).sum())
        if not won or not area or not won / area > overlap:
            continue
        name = ("class", int(label[q])) if int(label[q]) in fuse else ("query", q)
        number, best = segments.get(name, (len(segments) + 1, 0.0))
        segments[name] = number, max(best, float(score[q]))
        ids[owner == q] = number
    labels = [key if kind == "class" else int(label[key]) for kind, key in segments]
    return ids, [
        (number, one, one in fuse, best)
        for (number, best), one in zip(segments.values(), labels, strict=True)
    ]


@pytest.mark.parametrize("fuse", [set(), {0, 2}], ids=str)
@pytest.mark.parametrize("thresholds", [(0.5, 0.5, 0.1), (0.3, 0.2, 0.0), (0.4, 0.6, 0.3)], ids=str)
def test_panoptic_results_match_the_reference_loops(thresholds, fuse):
    outputs = random_outputs(batch=3)
    sizes = [(9, 11), (6, 8), (4, 17)]
    segments = 0
    found = post_process_panoptic(outputs, *thresholds, fuse, sizes)
    for logits, masks, size, one in zip(*outputs.values(), sizes, found, strict=True):
        ids, expected = panoptic_by_loops(logits, masks, size, *thresholds, fuse)
        assert one["segmentation"].dtype == torch.int32
        assert torch.equal(one["segmentation"], ids)
        got = [tuple(segment.values()) for segment in one["segments_info"]]
        assert [segment[:3] for segment in got] == [segment[:3] for segment in expected]
        assert [s[3] for s in got] == pytest.approx([s[3] for s in expected])
        segments += len(got)
    assert segments > 3


def test_shares_at_the_overlap_threshold_are_compared_in_fp32():
    """As in transformers: 1/2 does not exceed 0.5, but 4/5 exceeds 0.8, as 0.80000001 in fp32."""
    for won, area, threshold, count in ((1, 2, 0.5, 1), (4, 5, 0.8, 2)):
        masks = torch.full((1, 2, 1, 6), -9.0)
        masks[0, 0, 0, :area] = 4
        masks[0, 1, 0, won:] = 9
        outputs = {
            "pred_logits": torch.tensor([[[9.0, 0, 0], [0, 9.0, 0]]]),
            "pred_masks": masks,
        }
        (found,) = post_process_panoptic(outputs, overlap_mask_area_threshold=threshold)
        assert len(found["segments_info"]) == count


def test_without_segments_the_map_is_void():
    outputs = striped_outputs([0, 0, 0, 9], [0, 0, 0, 9])
    (found,) = post_process_panoptic(outputs, target_sizes=[(5, 7)])
    assert found["segments_info"] == []
    assert torch.equal(found["segmentation"], torch.zeros(5, 7, dtype=torch.int32))


# Instances


def test_instances_are_returned_in_the_requested_form():
    outputs = striped_outputs([9, 0, 0, 0], [0, 0, 9, 0])
    outputs["pred_masks"][:, :, 0] = -9  # the top row is empty
    (by_id,), (masks,), (runs,) = (
        post_process_instance(outputs, target_sizes=[(8, 16)], form=form)
        for form in ("id_map", "masks", "rle")
    )
    assert by_id["segments_info"] == masks["segments_info"] == runs["segments_info"]
    assert sorted(one["label_id"] for one in by_id["segments_info"]) == [0, 2]
    assert [one["id"] for one in by_id["segments_info"]] == [0, 1]
    for index, segment in enumerate(by_id["segments_info"]):
        expected = torch.zeros(8, 16, dtype=torch.bool)
        expected[2:, 8 * (segment["label_id"] == 2) :][:, :8] = True
        assert torch.equal(masks["segmentation"][index], expected)
        assert torch.equal(by_id["segmentation"] == index, expected)
        assert runs["segmentation"][index]["size"] == [8, 16]
        decoded = coco_mask.decode(runs["segmentation"][index])
        assert np.array_equal(decoded, expected.numpy())


def test_ids_of_instances_start_at_0_and_pixels_without_one_are_minus_1():
    outputs = striped_outputs([9, 0, 0, 0], [0, 0, 0, 9])
    (found,) = post_process_instance(outputs)
    assert found["segmentation"].dtype == torch.int32
    assert found["segmentation"].unique().tolist() == [-1, 0]


@pytest.mark.parametrize("image_sizes", [None, [(16, 32)]])
@pytest.mark.parametrize("form, count", [("masks", 0), ("rle", 0), ("id_map", 7)])
def test_without_instances_the_result_is_empty(form, count, image_sizes):
    outputs = striped_outputs([0, 0, 0, 9], [0, 0, 0, 9])
    (found,) = post_process_instance(
        outputs, target_sizes=[(7, 9)], form=form, image_sizes=image_sizes
    )
    assert len(found["segmentation"]) == count
    assert found["segments_info"] == []


def test_a_mask_that_vanishes_when_downsampled_is_left_out():
    outputs = striped_outputs([9, 0, 0, 0], [0, 9, 0, 0])
    outputs["pred_masks"][0, 1] = -9
    outputs["pred_masks"][0, 1, 3, 7] = 9
    assert len(post_process_instance(outputs)[0]["segments_info"]) == 2
    (found,) = post_process_instance(outputs, target_sizes=[(2, 4)])
    assert [one["label_id"] for one in found["segments_info"]] == [0]


def test_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="form is 'polygons'; expected one of id_map, masks, rle"):
        post_process_instance(random_outputs(), form="polygons")


# Batches


@pytest.mark.parametrize(
    "image_sizes, sizes",
    [([(24, 32), (17, 30)], [(50, 40), (9, 64)]), ([(20, 32), (24, 9)], None)],
)
def test_with_image_sizes_results_equal_those_of_the_model(image_sizes, sizes):
    outputs = random_outputs()
    found = [
        process(outputs, target_sizes=sizes, image_sizes=image_sizes)
        for process in (post_process_semantic, post_process_panoptic)
    ]
    instances = post_process_instance(
        outputs, 0.2, target_sizes=sizes, image_sizes=image_sizes, form="masks"
    )
    for index, image in enumerate(image_sizes):
        logits = outputs["pred_logits"][index]
        masks = as_masks(outputs["pred_masks"][index]).resize((24, 32)).crop(image)
        masks = masks.resize(sizes and sizes[index])
        assert found[0][index].shape == (image if sizes is None else sizes[index])
        assert torch.equal(found[0][index], semantic_map(logits, masks))
        # Mask areas are counted differently, so only the assignment of pixels is compared.
        ids, _ = panoptic_inference(
            logits,
            masks,
            thing_ids=range(CLASSES),
            object_mask_threshold=0.5,
            overlap_threshold=0,
        )
        ours = post_process_panoptic(
            outputs, 0.5, 0.01, 0, target_sizes=sizes, image_sizes=image_sizes
        )[index]["segmentation"]
        assert len(ids.unique()) > 1
        assert torch.equal(ours, ids)
        expected = instance_inference(logits, masks, topk=QUERIES)
        expected = expected[(expected.scores >= 0.2) & expected.pred_masks.flatten(1).any(1)]
        assert len(expected) > 2
        scores = {segment["score"]: segment["id"] for segment in instances[index]["segments_info"]}
        assert sorted(scores) == pytest.approx(sorted(expected.scores.tolist()))
        for score, mask in zip(expected.scores.tolist(), expected.pred_masks, strict=True):
            nearest = min(scores, key=lambda one: abs(one - score))
            assert torch.equal(instances[index]["segmentation"][scores[nearest]], mask)


def process_all(outputs, **settings):
    yield from post_process_semantic(outputs, **settings)
    for process in (post_process_panoptic, post_process_instance):
        for one in process(outputs, **settings):
            yield one["segmentation"]


@pytest.mark.parametrize("image_sizes", [None, [(24, 32), (17, 30)]])
def test_results_do_not_depend_on_the_bands(monkeypatch, image_sizes):
    settings = {"target_sizes": [(40, 50), (9, 90)], "image_sizes": image_sizes}
    expected = list(process_all(random_outputs(), **settings))
    monkeypatch.setitem(lazy_masks._BAND_ELEMENTS, "cpu", 1)  # one row at a time
    for one, other in zip(process_all(random_outputs(), **settings), expected, strict=True):
        assert torch.equal(one, other)


def test_outputs_are_not_modified():
    outputs = random_outputs()
    before = {name: value.clone() for name, value in outputs.items()}
    for settings in ({}, {"target_sizes": [(6, 8)] * 2}, {"image_sizes": [(24, 32)] * 2}):
        list(process_all(outputs, **settings))
    for name, value in outputs.items():
        assert torch.equal(value, before[name])


def test_outputs_with_the_names_of_transformers_are_accepted():
    outputs = random_outputs()
    renamed = dict(
        zip(("class_queries_logits", "masks_queries_logits"), outputs.values(), strict=True)
    )
    for one, other in zip(process_all(renamed), process_all(outputs), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "outputs, settings, error, expected",
    [
        ({"logits": 0}, {}, KeyError, "The outputs have ['logits']; expected ('pred_logits'"),
        (None, {"target_sizes": [(4, 4)]}, ValueError, "target_sizes has 1 sizes for the 2 images"),
        (None, {"image_sizes": [(4, 4)]}, ValueError, "image_sizes has 1 sizes for the 2 images"),
        (
            None,
            {"image_sizes": [(4, 4), (25, 32)]},
            ValueError,
            "image_sizes has (25, 32) (height, width) for image 1, but mask logits of (6, 8)",
        ),
    ],
)
def test_settings_that_do_not_fit_the_batch_are_refused(outputs, settings, error, expected):
    for process in (post_process_semantic, post_process_panoptic, post_process_instance):
        with pytest.raises(error) as caught:
            process(outputs or random_outputs(), **settings)
        assert expected in caught.value.args[0]
