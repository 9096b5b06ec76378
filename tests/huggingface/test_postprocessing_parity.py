"""Post-processing and encoding, compared with the public API of transformers.

Maps are compared pixel by pixel, and ids, classes and scores one by one. Intended differences
(docs/transformers.md) have their own tests at the end.
"""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mask_former.huggingface.postprocessing import (
    encode,
    post_process_instance,
    post_process_panoptic,
    post_process_semantic,
)
from mask_former.inference import semantic_inference
from tests.helpers.huggingface_models import transformers

THEIRS = transformers.MaskFormerImageProcessor(do_resize=False, size_divisor=1)
QUERIES, CLASSES = 30, 7
SIZES = [None, [(96, 120), (31, 250), (7, 5)], [(24, 32), (200, 64), (97, 97)]]

TIES = 1e-4
"""The share of pixels that may differ: those whose two best values differ by a few fp32 steps.
Here values are resized along rows and then along columns, in transformers in one step."""


def noise(seed=0, dtype=torch.float32):
    """Return random logits, with close values at every pixel."""
    generator = torch.Generator().manual_seed(seed)
    return {
        "pred_logits": (3 * torch.randn(3, QUERIES, CLASSES + 1, generator=generator)).to(dtype),
        "pred_masks": (3 * torch.randn(3, QUERIES, 24, 32, generator=generator)).to(dtype),
    }


def blobs(seed=0):
    """Return logits like those of a trained model: half of the queries have smooth masks with
    overlaps and gaps, the others predict "no object"."""
    generator = torch.Generator().manual_seed(seed)
    real = QUERIES // 2
    coarse = torch.randn(3, QUERIES, 4, 5, generator=generator)
    smooth = F.interpolate(coarse, (24, 32), mode="bicubic", align_corners=False)
    best = smooth[:, :real].topk(2, dim=1).values
    others = torch.where(smooth == best[:, :1], best[:, 1:], best[:, :1])
    overlap = 0.4 * torch.rand(3, QUERIES, 1, 1, generator=generator) - 0.2
    logits = torch.randn(3, QUERIES, CLASSES + 1, generator=generator)
    classes = torch.randint(CLASSES, (3, QUERIES), generator=generator)
    classes[:, real:] = CLASSES
    confidence = 4 + 5 * torch.rand(3, QUERIES, 1, generator=generator)
    logits.scatter_add_(2, classes[..., None], confidence)
    return {"pred_logits": logits, "pred_masks": 12 * (smooth - others + overlap)}


LOGITS = [noise(0), noise(1), blobs(0), blobs(1), blobs(2)]

each_case = pytest.mark.parametrize(
    "outputs, sizes",
    [(logits, sizes) for logits in LOGITS for sizes in SIZES],
    ids=[
        f"{name}-{sizes}"
        for name in ("noise 0", "noise 1", "blobs 0", "blobs 1", "blobs 2")
        for sizes in ("mask size", "mixed sizes", "other sizes")
    ],
)


def as_theirs(outputs):
    return SimpleNamespace(
        class_queries_logits=outputs["pred_logits"], masks_queries_logits=outputs["pred_masks"]
    )


def assert_same_map(found, expected):
    assert found.shape == expected.shape
    assert (found != expected).double().mean() <= TIES


def assert_same_segments(found, expected):
    """Compare segments; transformers rounds scores to six digits."""
    names = ("id", "label_id", "was_fused")
    assert [[one[name] for name in names] for one in found] == [
        [one[name] for name in names] for one in expected
    ]
    scores = [one["score"] for one in found]
    assert scores == pytest.approx([one["score"] for one in expected], abs=2e-6)


def each_segment_once(segments):
    """Merge the entries of fused segments, and give every segment a unique id.

    transformers lists a fused segment once per query, and continues counting from its id, so that
    two segments may share an id.

    Returns:
        The segments with their largest score, and a dict from each new id to transformers' id.
    """
    merged, their_id = {}, {0: 0}
    for index, segment in enumerate(segments):
        key = ("class", segment["label_id"]) if segment["was_fused"] else ("query", index)
        first = merged.setdefault(key, {**segment, "id": len(merged) + 1})
        first["score"] = max(first["score"], segment["score"])
        assert their_id.setdefault(first["id"], segment["id"]) == segment["id"]
    return list(merged.values()), their_id


# Results


@each_case
def test_semantic_maps_equal_those_of_transformers(outputs, sizes):
    expected = THEIRS.post_process_semantic_segmentation(as_theirs(outputs), sizes)
    found = post_process_semantic(outputs, sizes)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert len(theirs.unique()) > 2, "the case has too few classes"
        assert_same_map(ours, theirs)


@each_case
def test_class_scores_equal_those_of_transformers(outputs, sizes):
    expected = THEIRS.post_process_semantic_segmentation(
        as_theirs(outputs), sizes, return_segmentation_scores=True
    )
    for index, theirs in enumerate(expected):
        found = semantic_inference(
            outputs["pred_logits"][index],
            outputs["pred_masks"][index],
            result_size=sizes and sizes[index],
        )
        torch.testing.assert_close(found, theirs["segmentation_scores"], rtol=1e-4, atol=1e-5)


@each_case
@pytest.mark.parametrize(
    "thresholds, fuse",
    [
        ({}, None),
        ({}, {0, 2, 3, 5}),
        (
            {"threshold": 0.3, "mask_threshold": 0.4, "overlap_mask_area_threshold": 0.02},
            {0, 2, 3, 5},
        ),
        (
            {"threshold": 0.95, "mask_threshold": 0.7, "overlap_mask_area_threshold": 0.5},
            set(range(CLASSES)),
        ),
    ],
    ids=["defaults", "some fused", "low thresholds", "high thresholds, all fused"],
)
def test_panoptic_results_equal_those_of_transformers(outputs, sizes, thresholds, fuse):
    expected = THEIRS.post_process_panoptic_segmentation(
        as_theirs(outputs), **thresholds, label_ids_to_fuse=fuse, target_sizes=sizes
    )
    found = post_process_panoptic(outputs, **thresholds, label_ids_to_fuse=fuse, target_sizes=sizes)
    for ours, theirs in zip(found, expected, strict=True):
        segments, their_id = each_segment_once(theirs["segments_info"])
        assert_same_segments(ours["segments_info"], segments)
        ids = torch.tensor([their_id[number] for number in range(len(their_id))])
        found_map = ids[ours["segmentation"]]
        # Without segments, transformers' map is -1 (see the end).
        assert_same_map(found_map, theirs["segmentation"].clamp(min=0))
        if not fuse:
            assert sorted(their_id.items()) == [(i, i) for i in range(len(their_id))]


@each_case
@pytest.mark.parametrize("threshold", [0.5, 0.2])
def test_instances_equal_those_of_transformers(outputs, sizes, threshold):
    both = as_theirs(outputs), threshold
    expected = THEIRS.post_process_instance_segmentation(*both, target_sizes=sizes)
    found = post_process_instance(outputs, threshold, sizes)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours["segmentation"], theirs["segmentation"].int())
        assert_same_segments(ours["segments_info"], theirs["segments_info"])


@each_case
def test_masks_of_instances_equal_those_of_transformers(outputs, sizes):
    expected = THEIRS.post_process_instance_segmentation(
        as_theirs(outputs), 0.2, target_sizes=sizes, return_binary_maps=True
    )
    for ours, theirs in zip(
        post_process_instance(outputs, 0.2, sizes, form="masks"), expected, strict=True
    ):
        if theirs["segments_info"]:
            assert torch.equal(ours["segmentation"], theirs["segmentation"].bool())


def test_the_cases_cover_fusion_and_pixels_without_instances():
    panoptic = [
        segment
        for outputs in LOGITS
        for one in post_process_panoptic(outputs, label_ids_to_fuse={0, 2, 3, 5})
        for segment in one["segments_info"]
    ]
    instances = [len(one["segments_info"]) for o in LOGITS for one in post_process_instance(o, 0.2)]
    assert len(panoptic) > 20
    assert {segment["was_fused"] for segment in panoptic} == {False, True}
    assert sum(instances) > 50
    (one,) = {m["segmentation"].min().item() for o in LOGITS[2:] for m in post_process_instance(o)}
    assert one == -1, "no image has a pixel without an instance"
    queries = [
        len(one["segments_info"])
        for outputs in LOGITS
        for one in THEIRS.post_process_panoptic_segmentation(
            as_theirs(outputs), label_ids_to_fuse={0, 2, 3, 5}
        )
    ]
    assert sum(queries) > len(panoptic), "no two queries were fused"


def test_half_precision_and_outputs_of_transformers_are_accepted():
    outputs = noise(dtype=torch.bfloat16)
    wide = {name: value.float() for name, value in outputs.items()}
    renamed = dict(as_theirs(outputs).__dict__)
    for process in (post_process_semantic, post_process_panoptic, post_process_instance):
        expected = process(wide, target_sizes=SIZES[1])
        for found in (
            process(outputs, target_sizes=SIZES[1]),
            process(renamed, target_sizes=SIZES[1]),
        ):
            for one, other in zip(found, expected, strict=True):
                if isinstance(other, dict):
                    one, other = one["segmentation"], other["segmentation"]
                # A CPU multiplies in bfloat16, see semantic_inference.
                assert (one != other).double().mean() < 0.05


def test_a_score_at_the_threshold_is_enough_only_for_instances():
    certain = {
        "pred_logits": torch.tensor([[[99.0, 0, 0]]]),
        "pred_masks": torch.full((1, 1, 8, 8), 99.0),
    }
    (theirs,) = THEIRS.post_process_instance_segmentation(as_theirs(certain), 1.0)
    (ours,) = post_process_instance(certain, 1.0)
    assert ours["segments_info"] == theirs["segments_info"] != []
    (theirs,) = THEIRS.post_process_panoptic_segmentation(as_theirs(certain), 1.0)
    (ours,) = post_process_panoptic(certain, 1.0)
    assert ours["segments_info"] == theirs["segments_info"] == []


# Targets


def their_targets(maps, classes, **settings):
    images = [np.zeros((*values.shape, 3), np.uint8) for values in maps]
    found = THEIRS(
        images=images,
        segmentation_maps=maps,
        instance_id_to_semantic_id=classes,
        return_tensors="pt",
        **settings,
    )
    return list(zip(found["class_labels"], found["mask_labels"], strict=True))


def label_maps(largest, sizes=((12, 17), (12, 17))):
    """Return maps of small regions; the last map has a single value."""
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, largest + 1, (h // 3 + 1, w // 3 + 1)) for h, w in sizes]
    maps = [
        np.kron(values, np.ones((3, 3), int))[:h, :w].astype(np.int32)
        for values, (h, w) in zip(maps, sizes, strict=True)
    ]
    return [*maps, np.full_like(maps[0], largest)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"ignore_index": 0},
        {"ignore_index": 5},
        {"ignore_index": 255, "do_reduce_labels": True},
        {"ignore_index": 3, "do_reduce_labels": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("instances", ["classes", "one table", "a table per map"])
def test_targets_equal_those_of_transformers(settings, instances):
    maps = label_maps(5)
    table = {0: 4, 1: 6, 2: 6, 3: 1, 4: 9, 5: 2}
    other = {**table, 2: 3}
    classes = {"classes": None, "one table": table, "a table per map": [table, other, table]}
    expected = their_targets(maps, classes[instances], **settings)
    found = encode(maps, classes[instances], **settings)
    assert len(found) == len(expected) == 3
    for ours, (labels, masks) in zip(found, expected, strict=True):
        assert ours["labels"].tolist() == labels.tolist()
        assert torch.equal(ours["masks"], masks.bool())


@pytest.mark.parametrize("ignore_index", [None, 0])
def test_maps_of_mixed_sizes_are_padded_like_transformers(ignore_index):
    maps = label_maps(5, sizes=((12, 17), (9, 20)))
    expected = their_targets(maps, None, ignore_index=ignore_index)
    found = encode(maps, ignore_index=ignore_index)
    for ours, (labels, masks) in zip(found, expected, strict=True):
        assert ours["masks"].shape[1:] == (12, 20)
        assert ours["labels"].tolist() == labels.tolist()
        assert torch.equal(ours["masks"], masks.bool())


# Intended differences


def test_padding_is_in_no_mask_for_any_ignore_index():
    """transformers pads masks of 0 and 1 with the ignore index."""
    maps = label_maps(5, sizes=((12, 17), (9, 20)))
    (_, theirs), *_ = their_targets(maps, None, ignore_index=255)
    assert theirs[:, :, 17:].unique().tolist() == [255]
    ours = encode(maps, ignore_index=255)[0]["masks"]
    assert not ours[:, :, 17:].any()
    assert torch.equal(ours[:, :, :17], theirs[:, :, :17].bool())


NOTHING = {
    "pred_logits": torch.tensor([0.0, 0.0, 9.0]).repeat(1, 4, 1),
    "pred_masks": torch.ones(1, 4, 6, 8),
}


def test_segments_of_different_classes_never_share_an_id():
    """In transformers, the id after a fused segment's may already be in use."""
    masks = torch.full((1, 4, 1, 4), -9.0)
    masks[0, range(4), 0, range(4)] = 9
    classes = torch.tensor([0, 1, 0, 2])
    outputs = {"pred_logits": 9 * F.one_hot(classes, 4)[None].float(), "pred_masks": masks}
    (theirs,) = THEIRS.post_process_panoptic_segmentation(as_theirs(outputs), label_ids_to_fuse={0})
    (ours,) = post_process_panoptic(outputs, label_ids_to_fuse={0})
    assert theirs["segmentation"].tolist() == [[1, 2, 1, 2]]
    assert ours["segmentation"].tolist() == [[1, 2, 1, 3]]
    assert [one["label_id"] for one in ours["segments_info"]] == [0, 1, 2]


def test_void_is_0_even_without_segments():
    (theirs,) = THEIRS.post_process_panoptic_segmentation(as_theirs(NOTHING))
    (ours,) = post_process_panoptic(NOTHING)
    assert theirs["segmentation"].unique().tolist() == [-1]
    assert ours["segmentation"].unique().tolist() == [0]
    assert ours["segments_info"] == theirs["segments_info"] == []


def test_without_instances_there_are_no_masks():
    (theirs,) = THEIRS.post_process_instance_segmentation(
        as_theirs(NOTHING), return_binary_maps=True
    )
    assert theirs["segmentation"].shape == (6, 8)  # a map of -1
    for form, expected in (("masks", 0), ("rle", 0)):
        (ours,) = post_process_instance(NOTHING, form=form)
        assert len(ours["segmentation"]) == expected


def test_run_lengths_are_cocos_and_of_complete_masks():
    from pycocotools import mask as coco_mask

    outputs = LOGITS[2]
    masks = post_process_instance(outputs, 0.2, SIZES[1], form="masks")
    encoded = post_process_instance(outputs, 0.2, SIZES[1], form="rle")
    theirs = THEIRS.post_process_instance_segmentation(
        as_theirs(outputs), 0.2, target_sizes=SIZES[1], return_coco_annotation=True
    )
    cut = 0
    for complete, ours, other in zip(masks, encoded, theirs, strict=True):
        for index, mask in enumerate(complete["segmentation"]):
            decoded = coco_mask.decode(ours["segmentation"][index])
            assert np.array_equal(decoded, mask.numpy())
            runs = other["segmentation"][index : index + 1] or [[]]
            cut += sum(runs[0][1::2]) < mask.sum()
    assert cut, "transformers would also encode complete masks"


def test_padding_is_removed_if_image_sizes_are_given():
    """transformers stretches the padding into the result."""
    masks = torch.full((2, 2, 8, 8), -9.0)
    masks[:, 0, :, :4], masks[0, 1, :, 4:], masks[1, 1, :, 4:6] = 9, 9, 9
    logits = torch.tensor([[9.0, 0, 0], [0, 9.0, 0]]).expand(2, -1, -1)
    outputs = {"pred_logits": logits, "pred_masks": masks}  # image 1 is 32×24, padded to 32×32
    sizes = [(32, 32), (32, 24)]
    expected = torch.zeros(32, 24, dtype=torch.int64)
    expected[:, 16:] = 1
    assert torch.equal(post_process_semantic(outputs, sizes, image_sizes=sizes)[1], expected)
    stretched = THEIRS.post_process_semantic_segmentation(as_theirs(outputs), sizes)[1]
    assert (stretched != expected).double().mean() > 0.1
