"""The result of one image: conversion, drawing, saving and loading."""

from __future__ import annotations

import json
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.data.datasets.classes import Classes
from mask_former.data.formats.readers import read_class_map
from mask_former.results import InstanceResult, PanopticResult, Result, from_detectron2, load_npz
from mask_former.utils import atomic_files as files
from mask_former.utils.bounded_files import UnreadableFile
from mask_former.utils.colors import spread_color
from tests.helpers.scenes import CLASSES as SHAPES
from tests.helpers.scenes import instances_of, predict, scene

CLASSES = Classes(
    ["sky", "road", "car"], [(70, 130, 180), (128, 64, 128), (0, 0, 142)], [False, False, True]
)
H, W = 60, 90
SEGMENT = {"id": 1, "isthing": True, "category_id": 0, "score": 0.5}


def make_result(**changes) -> Result:
    """Return a result with sky above road, and two cars, one with a low score."""
    rng = np.random.default_rng(0)
    semantic = np.zeros((H, W), np.int32)
    semantic[30:] = 1
    masks = np.zeros((2, H, W), bool)
    masks[0, 40:50, 10:40] = masks[1, 45:55, 60:80] = True
    semantic[masks.any(0)] = 2
    ids = semantic + 1
    ids[masks[1]] = 4
    segments = [
        {"id": i, "isthing": i > 2, "category_id": min(i - 1, 2), "score": 0.9}
        for i in (1, 2, 3, 4)
    ]
    content = {
        "semantic": semantic,
        "semantic_scores": rng.random((H, W), dtype=np.float32),
        "panoptic": PanopticResult(ids, segments),
        "instances": InstanceResult(
            masks,
            np.array([[10, 40, 40, 50], [60, 45, 80, 55]], np.float32),
            np.array([0.9, 0.4], np.float32),
            np.array([2, 2]),
            ["car", "car"],
        ),
        "file_name": "photos/street.jpg",
    }
    image = rng.integers(0, 256, (H, W, 3), dtype=np.uint8)
    return Result(image, CLASSES, **{**content, **changes})


def assert_same(one: Result, other: Result) -> None:
    for field in fields(Result):
        a, b = getattr(one, field.name), getattr(other, field.name)
        if field.name == "instances" and a is not None:
            for name in ("masks", "boxes", "scores", "class_ids"):
                np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
                assert getattr(a, name).dtype == getattr(b, name).dtype
            assert a.class_names == b.class_names
        elif field.name == "panoptic" and a is not None:
            np.testing.assert_array_equal(a.ids, b.ids)
            assert a.segments == b.segments and a.ids.dtype == b.ids.dtype
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype
        else:
            assert a == b


# Conversion of a model's output


def test_a_models_output_becomes_arrays_with_instances_by_descending_score():
    image, ids, names = scene(3)
    classes = {i: SHAPES.names.index(name) for i, name in names.items()}
    outputs = predict(ids, classes, np.random.default_rng(0))
    result = from_detectron2(outputs, image, SHAPES, "a.png")
    assert result.kinds == ["panoptic", "instance", "semantic"]
    scores = outputs["sem_seg"]
    assert (result.semantic == scores.argmax(0).numpy()).all()
    share = (scores.amax(0) / scores.sum(0)).numpy()
    np.testing.assert_allclose(result.semantic_scores, share, rtol=1e-6)
    assert (result.panoptic.ids == outputs["panoptic_seg"][0].numpy()).all()
    found, theirs = result.instances, outputs["instances"]
    order = theirs.scores.argsort(descending=True).tolist()
    assert order != sorted(order)  # the output is not sorted already
    assert found.scores.tolist() == theirs.scores[order].tolist()
    assert (found.masks == theirs.pred_masks[order].numpy()).all()
    assert (found.boxes == theirs.pred_boxes.tensor[order].numpy()).all()
    assert found.class_names == [SHAPES.names[i] for i in theirs.pred_classes[order]]
    assert len(found) == len(order) and result.file_name == "a.png"


def test_pixels_outside_all_masks_have_a_score_of_0():
    result = from_detectron2(
        {"sem_seg": torch.zeros(3, 2, 2)}, np.zeros((2, 2, 3), np.uint8), CLASSES
    )
    assert not result.semantic_scores.any() and result.kinds == ["semantic"]


def test_results_of_another_size_than_the_image_are_refused():
    with pytest.raises(ValueError, match=r"\(60, 90\) \(H, W\), but its semantic result is \(2"):
        make_result(semantic=np.zeros((2, 3), np.int32))
    masks = replace(make_result().instances, masks=np.zeros((2, 5, 6), bool))
    with pytest.raises(ValueError, match=r"its instances result is \(5, 6\)"):
        make_result(instances=masks)


# Drawing


def test_the_richest_kind_is_drawn_by_default():
    result = make_result()
    assert (result.draw() == result.draw("panoptic")).all()
    assert (result.draw("semantic") != result.draw("panoptic")).any()
    without = replace(result, panoptic=None)
    assert (without.draw() == result.draw("instance")).all()


def test_the_threshold_applies_to_scores_of_instances_or_pixels():
    result = make_result()
    assert [r.label for r in result.overlay("instance").regions] == ["car 90%"]
    assert len(result.overlay("instance", 0.3).regions) == 2
    assert not result.overlay("instance", 0.95).regions
    ids = result.overlay("semantic", 0.7).ids
    assert ((ids > 0) == (result.semantic_scores >= 0.7)).all()
    assert (result.overlay("semantic").ids > 0).all()
    assert len(result.overlay("panoptic", 1.0).regions) == 4


def test_the_order_of_the_instances_is_irrelevant():
    rng = np.random.default_rng(3)
    masks = rng.random((6, 5, 7)) < np.linspace(0.2, 0.8, 6)[:, None, None]
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.55, 0.51], np.float32)
    overlays = []
    for order in (np.arange(6), rng.permutation(6)):
        found = InstanceResult.sorted_by_score(
            masks[order],
            np.zeros((6, 4), np.float32),
            scores[order],
            np.arange(6)[order] % 3,
            CLASSES,
        )
        result = Result(np.zeros((5, 7, 3), np.uint8), CLASSES, instances=found)
        overlays.append(result.overlay("instance"))
    assert (overlays[0].ids == overlays[1].ids).all()
    assert overlays[0].regions == overlays[1].regions


def test_without_instances_nothing_is_painted():
    none = from_detectron2(
        {"instances": instances_of([], [], (4, 6))}, np.zeros((4, 6, 3), np.uint8), CLASSES
    )
    assert none.overlay("instance").regions == [] and not none.draw().any()


def test_a_missing_result_is_an_error_that_lists_those_that_exist():
    with pytest.raises(ValueError, match=r"no panoptic result, only \['instance', 'semantic'\]"):
        make_result(panoptic=None).draw("panoptic")
    empty = make_result(panoptic=None, semantic=None, instances=None)
    with pytest.raises(ValueError, match="The result is empty: it has no panoptic"):
        empty.draw()
    with pytest.raises(ValueError, match="this semantic result has no semantic_scores"):
        make_result(semantic_scores=None).overlay("semantic", 0.5)


def legend_of(monkeypatch, result, kind, **options):
    from mask_former.results import arrays as module

    rows = []
    monkeypatch.setattr(module, "add_legend", lambda image, found: rows.extend(found) or image)
    result.draw(kind, legend=True, **options)
    return [(row.name, round(row.share, 4), tuple(row.swatch[0, 0])) for row in rows]


def test_the_legend_lists_painted_classes_with_counts_of_things_and_areas(monkeypatch):
    sky, road, car = CLASSES.colors
    result = make_result()
    cars = 500 / (H * W)
    assert legend_of(monkeypatch, result, "panoptic") == [
        ("sky", 0.5, sky),
        ("road", round(0.5 - cars, 4), road),
        ("car ×2", round(cars, 4), car),
    ]
    assert legend_of(monkeypatch, result, "semantic") == [
        ("sky", 0.5, sky),
        ("road", round(0.5 - cars, 4), road),
        ("car", round(cars, 4), car),
    ]
    assert legend_of(monkeypatch, result, "instance") == [("car ×1", round(300 / (H * W), 4), car)]
    assert legend_of(monkeypatch, result, "instance", threshold=1.0) == []


def test_a_legend_does_not_change_the_drawing():
    result = make_result()
    with_legend = result.draw(legend=True, scale=3)
    height, width = 3 * H, 3 * W
    assert (with_legend[:height, :width] == result.draw(scale=3)).all()
    assert with_legend.shape[:2] != (height, width)


# Saving


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"panoptic": None},
        {"instances": None},
        {"semantic": None, "semantic_scores": None},
        {"semantic_scores": None},
        {"file_name": None},
        {"semantic": np.full((H, W), -1, np.int32)},
        {"panoptic": PanopticResult(np.full((H, W), 70_000, np.int32), [SEGMENT | {"id": 70_000}])},
    ],
)
def test_an_npz_survives_writing_and_reading(tmp_path, changes):
    result = make_result(**changes)
    assert result.save(tmp_path / "a.npz") == [tmp_path / "a.npz"]
    assert_same(load_npz(tmp_path / "a.npz", result.image), result)
    assert not load_npz(tmp_path / "a.npz").image.any()


def test_masks_of_any_width_and_number_survive_an_npz(tmp_path):
    for count, width in ((0, 7), (1, 1), (3, 8), (2, 9)):
        masks = np.random.default_rng(0).random((count, 4, width)) < 0.5
        instances = InstanceResult(
            masks,
            np.zeros((count, 4), np.float32),
            np.ones(count, np.float32),
            np.zeros(count, np.int64),
            ["sky"] * count,
        )
        result = Result(np.zeros((4, width, 3), np.uint8), CLASSES, instances=instances)
        result.save(tmp_path / "a.npz")
        assert_same(load_npz(tmp_path / "a.npz"), result)


def test_the_error_for_a_broken_or_missing_npz_names_it(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"gone\.npz is missing: expected a file that Result\.save"
    ):
        load_npz(tmp_path / "gone.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 nothing")
    np.savez(tmp_path / "other.npz", a=1)
    for name in ("broken", "other"):
        with pytest.raises(ValueError, match=rf"{name}\.npz is not a results file"):
            load_npz(tmp_path / f"{name}.npz")
    make_result().save(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"another size"):
        load_npz(tmp_path / "a.npz", np.zeros((3, 3, 3), np.uint8))


def test_a_png_of_class_ids_is_shown_in_colours_and_read_back(tmp_path):
    semantic = make_result().semantic.copy()
    semantic[0, :5] = -1
    result = make_result(semantic=semantic)
    (path,) = result.save(tmp_path / "a.png", "semantic-png")
    ids = read_class_map(str(path))
    assert ids.dtype == np.uint8 and (ids[0, :5] == 255).all()
    assert (ids.astype(int)[semantic >= 0] == semantic[semantic >= 0]).all()
    shown = np.asarray(Image.open(path).convert("RGB"))
    assert (shown[semantic >= 0] == np.array(CLASSES.colors)[semantic[semantic >= 0]]).all()


@pytest.mark.parametrize("count, dtype, void", [(255, np.uint8, 255), (256, np.uint16, 65535)])
def test_more_than_255_classes_are_saved_with_16_bits(tmp_path, count, dtype, void):
    classes = Classes(
        [str(i) for i in range(count)], [spread_color(i) for i in range(count)], [False] * count
    )
    semantic = (np.arange(H * W, dtype=np.int32) % (count + 1)).reshape(H, W) - 1
    result = Result(np.zeros((H, W, 3), np.uint8), classes, semantic=semantic)
    (path,) = result.save(tmp_path / "a.png", "semantic-png")
    ids = np.asarray(Image.open(path))
    assert ids.dtype == dtype
    assert (ids == np.where(semantic < 0, void, semantic)).all()


def test_the_suffix_of_a_file_determines_its_format(tmp_path):
    result = make_result()
    for name in ("a.png", "deep/er/a.bmp", "A.PNG"):
        assert result.save(tmp_path / name) == [tmp_path / name]
        assert (np.asarray(Image.open(tmp_path / name)) == result.draw()).all()
    result.save(tmp_path / "a.jpg")
    with Image.open(tmp_path / "a.jpg") as image:
        assert image.format == "JPEG" and image.size == (W, H)
    result.save(tmp_path / "a.json")
    assert {e["image_id"] for e in json.loads((tmp_path / "a.json").read_text())} == {"street"}


def test_a_folder_gets_the_drawing_unless_formats_are_given(tmp_path):
    result = make_result()
    assert result.save(tmp_path / "out") == [tmp_path / "out/overlay/street.png"]
    paths = result.save(str(tmp_path / "v1.2"), "npz", "semantic-png", name="b")
    assert paths == [tmp_path / "v1.2/npz/b.npz", tmp_path / "v1.2/semantic/b.png"]
    unnamed = make_result(file_name=None)
    assert unnamed.save(tmp_path / "out") == [tmp_path / "out/overlay/result.png"]


@pytest.mark.parametrize(
    "name, formats, message",
    [
        ("a.png", ["npz"], r"a\.png can be written as overlay or semantic-png, not as npz"),
        ("a.npz", ["npz", "overlay"], r"a\.npz can be written as npz, not as npz, overlay"),
        ("a.xyz", [], r"a\.xyz is not a folder, and results cannot be written with its suffix"),
        ("a", ["masks"], r"no format 'masks'; expected one of overlay"),
    ],
)
def test_the_error_for_an_unsupported_format_names_the_alternatives(
    tmp_path, name, formats, message
):
    with pytest.raises(ValueError, match=message):
        make_result().save(tmp_path / name, *formats)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a.npz", "a.json"])
def test_files_are_written_atomically(tmp_path, monkeypatch, name):
    result = make_result()
    result.save(tmp_path / name)
    before = (tmp_path / name).read_bytes()

    def disk_full(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", disk_full)
    with pytest.raises(OSError, match="no space left"):
        replace(result, panoptic=None).save(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == before


def changed(path, **arrays):
    """Replace arrays of a saved result."""
    with np.load(path) as file:
        content = {**file, **arrays}
    np.savez_compressed(path, **content)
    return path


@pytest.mark.parametrize(
    "arrays, reason",
    [
        ({"size": np.array([10**6, 10**6])}, r"its size is \(1000000, 1000000\), expected"),
        ({"size": np.array([60, -90])}, r"its size is"),
        ({"size": np.array(60)}, r""),
        ({"semantic": np.full((H, W), 99)}, r"'semantic' has the ids 99 … 99, expected -1 … 2"),
        ({"semantic": np.zeros((3, 3), int)}, r"'semantic' is \(3, 3\) int64, expected \(60, 90\)"),
        ({"semantic": np.zeros((H, W), "U1")}, r"'semantic' is \(60, 90\) <U1"),
        ({"semantic_scores": np.zeros((H, W), "U1")}, r"'semantic_scores' is"),
        ({"panoptic_ids": np.full((H, W), 9)}, r"'panoptic_ids' has the ids 9 … 9"),
        ({"panoptic_segments": np.array('["x"]')}, r""),
        ({"panoptic_segments": np.array("[" * 10**5)}, r"more than 50 levels"),
        ({"panoptic_segments": np.array(json.dumps([SEGMENT | {"id": 2**31}]))}, r"has \{"),
        ({"panoptic_segments": np.array(json.dumps([SEGMENT | {"category_id": 3}]))}, r"has \{"),
        ({"panoptic_segments": np.array(json.dumps([SEGMENT | {"score": "x"}]))}, r"has \{"),
        ({"instance_class_ids": np.array([2, 77])}, r"'instance_class_ids' has the ids 2 … 77"),
        ({"instance_scores": np.ones(3, np.float32)}, r"'instance_boxes' is \(2, 4\)"),
        ({"instance_masks": np.zeros((2, H, 1), np.uint8)}, r"'instance_masks' is \(2, 60, 1\)"),
        ({"classes": np.array('[{"name": "a", "color": [1000000, 0, 0], "isthing": true}]')}, r""),
        ({"classes": np.array('[{"name": "a", "color": [Infinity, 0, 0], "isthing": true}]')}, r""),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused_when_they_are_read(arrays, reason, tmp_path):
    make_result().save(tmp_path / "a.npz")
    with pytest.raises(UnreadableFile, match=rf"a\.npz is not a results file.*{reason}"):
        load_npz(changed(tmp_path / "a.npz", **arrays))


def test_a_damaged_npz_is_refused_wherever_the_damage_is(tmp_path):
    make_result().save(tmp_path / "a.npz")
    content = (tmp_path / "a.npz").read_bytes()
    for place in range(0, len(content), max(1, len(content) // 150)):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        (tmp_path / "a.npz").write_bytes(damaged)
        try:
            load_npz(tmp_path / "a.npz").draw()
        except UnreadableFile as error:
            assert "a.npz" in str(error)


def _write_npz(path, **arrays):
    classes = np.array('[{"name": "a", "color": [1, 2, 3], "isthing": true}]')
    np.savez(path, **{"size": np.array([2, 2]), "classes": classes, **arrays})


@pytest.mark.parametrize(
    "arrays",
    [
        {"semantic_scores": np.full((2, 2), np.nan)},
        {"semantic": np.full((2, 2), 2**32)},
        {"panoptic_ids": np.full((2, 2), 2**32), "panoptic_segments": np.array("[]")},
    ],
    ids=["not a number", "class ids of 33 bits", "segment ids of 33 bits"],
)
def test_numbers_that_a_result_cannot_have_are_refused(arrays, tmp_path):
    _write_npz(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=r"x\.npz is not a results file"):
        load_npz(tmp_path / "x.npz")


def test_an_array_that_a_file_holds_twice_is_refused(tmp_path):
    _write_npz(tmp_path / "x.npz", semantic=np.zeros((2, 2), int))
    with zipfile.ZipFile(tmp_path / "x.npz", "a") as file:
        file.writestr("semantic", file.read("semantic.npy"))
    with pytest.raises(ValueError, match=r"x\.npz .*'semantic' occurs twice"):
        load_npz(tmp_path / "x.npz")
