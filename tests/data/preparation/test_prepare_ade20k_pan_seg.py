"""datasets/prepare_ade20k_pan_seg.py; test_prepare_published.py tests all such scripts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask_former.data.datasets.catalog import read_table
from mask_former.data.preparation.ade20k import read_instances
from tests.helpers.preparation_trees import (
    ADE,
    HEIGHT,
    WIDTH,
    ade_instances,
    ade_semantic,
    ade_tree,
    pixels,
    registered,
    save,
    save_photo,
)
from tests.helpers.scripts import load_script

script = load_script("datasets/prepare_ade20k_pan_seg.py")
WALL, SKY, BED, PERSON = 0, 2, 7, 12  # category ids


def test_the_tables_instance_categories_equal_the_datasets(shared_dir: Path) -> None:
    spec = json.loads((shared_dir / "spec" / "ade20k_instance_ids.json").read_text())
    table = read_table("ade20k_panoptic")
    expected = {instance: semantic - 1 for instance, semantic in spec["instance_to_semantic"]}
    assert table.source_ids == expected


def test_the_things_are_the_100_categories_with_instances() -> None:
    table = read_table("ade20k_panoptic")
    assert sorted(table.source_ids) == list(range(1, 101))
    assert sorted(table.source_ids.values()) == sorted(table.contiguous_ids(isthing=True).values())
    assert (table.source_ids[1], table.source_ids[4], table.source_ids[100]) == (BED, PERSON, 149)
    categories = json.dumps([c.source_id for c in table.categories])
    assert hashlib.sha256(categories.encode()).hexdigest()[:16] == "f16f26cb8f98db73"


def reference(semantic: np.ndarray, instances: np.ndarray) -> np.ndarray:
    """Return an H×W array of (category id, instance number or 0), or None for void."""
    table = read_table("ade20k_panoptic")
    segments = np.empty(semantic.shape, object)
    for y, x in np.ndindex(*semantic.shape):
        category, number = instances[y, x, :2].tolist()
        label = int(semantic[y, x])
        if number > 0:
            of_category = [c for c in table.categories if c.source_id == category]
            segments[y, x] = (of_category[0].id, number)
        elif label > 0 and not table.categories[label - 1].isthing:
            segments[y, x] = (table.categories[label - 1].id, 0)
    return segments


def check(ids: np.ndarray, category_ids: dict[int, int], expected: np.ndarray) -> None:
    """Check that partition and categories are equal, and that ids count from 1 without a gap."""
    names: dict[int, Any] = {}
    for found, segment in zip(ids.flat, expected.flat, strict=True):
        assert names.setdefault(int(found), segment) == segment
    assert names.pop(0, None) is None
    assert len(set(names.values())) == len(names)
    assert sorted(names) == list(range(1, len(names) + 1))
    assert category_ids == {i: segment[0] for i, segment in names.items()}


def scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 151, (12, 20), np.uint8)
    noisy = np.stack([rng.integers(1, 101, (12, 20)), rng.integers(0, 256, (12, 20))], axis=-1)
    none = np.zeros((12, 20, 2), np.uint8)
    same_number = none.copy()
    same_number[:, :5], same_number[:, 5:9] = (1, 1), (4, 1)
    no_number = none.copy()
    no_number[..., 0] = 4
    full = none.copy()
    full[...] = (100, 255)
    wall = np.ones_like(noise)
    return {
        "the tree's": (ade_semantic(), ade_instances()),
        "noise": (noise, noisy.astype(np.uint8)),
        "stuff alone, without void": (wall, none),
        "unlabelled": (np.zeros_like(noise), none),
        "things alone": (wall, full),
        "two categories, one number": (wall, same_number),
        "a category without number": (wall * 13, no_number),
    }


@pytest.mark.parametrize("name", scenes())
def test_segments_equal_those_of_a_loop_over_pixels(name: str) -> None:
    semantic, instances = scenes()[name]
    ids, category_ids = script.panoptic_ids(semantic, instances, read_table("ade20k_panoptic"))
    assert (ids.shape, ids.dtype) == (semantic.shape, np.int32)
    check(ids, category_ids, reference(semantic, instances))


def test_things_come_from_instances_stuff_from_the_label_map_and_the_rest_is_void(
    tmp_path: Path,
) -> None:
    ade_tree(tmp_path)
    script.prepare(tmp_path)
    content = json.loads((tmp_path / ADE / "ade20k_panoptic_val.json").read_text())
    assert content["images"] == [
        {
            "id": "ADE_val_00000001",
            "file_name": "ADE_val_00000001.jpg",
            "height": HEIGHT,
            "width": WIDTH,
        }
    ]
    (annotation,) = content["annotations"]
    assert annotation["image_id"] == "ADE_val_00000001"
    found = {(s["category_id"], s["area"], *s["bbox"]) for s in annotation["segments_info"]}
    person = 20 * 6
    assert found == {
        (SKY, 20 * 60 - 4 * 4 - person // 2 - 10 * 5, 0, 0, 60, 20),
        (WALL, 20 * 60 - 12 * 20 - 2 * 10 - person // 2, 0, 20, 60, 20),
        (BED, 14 * 10, 5, 22, 10, 14),  # its lower part covers the wall
        (BED, 12 * 10, 15, 22, 10, 12),
        (PERSON, person, 40, 10, 6, 20),
    }
    assert {s["iscrowd"] for s in annotation["segments_info"]} == {0}
    rgb = pixels(tmp_path / ADE / "ade20k_panoptic_val/ADE_val_00000001.png").astype(int)
    ids = rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]
    void = np.zeros((HEIGHT, WIDTH), bool)
    void[:4, :4] = True  # unlabelled
    void[10:20, 50:55] = True  # a person without an instance
    np.testing.assert_array_equal(ids == 0, void)
    for segment in annotation["segments_info"]:
        assert np.count_nonzero(ids == segment["id"]) == segment["area"]


def test_the_json_has_the_categories_of_the_table(tmp_path: Path) -> None:
    ade_tree(tmp_path)
    script.prepare(tmp_path)
    content = json.loads((tmp_path / ADE / "ade20k_panoptic_train.json").read_text())
    categories = content["categories"]
    assert [c["id"] for c in categories] == list(range(150))
    assert sum(c["isthing"] for c in categories) == 100
    assert categories[BED]["name"] == "bed"
    assert [a["file_name"] for a in content["annotations"]] == [
        "ADE_train_00000001.png",
        "ADE_train_00000002.png",
    ]


def test_panopticapi_scores_the_annotation_against_itself_with_100(tmp_path: Path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation", reason="no panopticapi")
    ade_tree(tmp_path)
    script.prepare(tmp_path)
    folder = tmp_path / ADE / "ade20k_panoptic_val"
    content = json.loads(folder.with_suffix(".json").read_text())
    (annotation,) = content["annotations"]
    categories = {c["id"]: c for c in content["categories"]}
    matched = [(annotation, annotation)]
    result = evaluation.pq_compute_single_core(0, matched, str(folder), str(folder), categories)
    found, _ = result.pq_average(categories, isthing=None)
    assert (found["pq"], found["n"]) == (1.0, 4)


@pytest.mark.usefixtures("restored_catalogs")
def test_registered_segments_have_contiguous_classes_and_isthing(tmp_path: Path) -> None:
    ade_tree(tmp_path)
    script.prepare(tmp_path)
    load_script("datasets/prepare_ade20k_sem_seg.py").prepare(tmp_path)
    (record,) = registered("ade20k_panoptic_val", tmp_path)
    found = {(s["category_id"], s["isthing"]) for s in record["segments_info"]}
    assert found == {(WALL, False), (SKY, False), (BED, True), (PERSON, True)}


def test_a_deleted_png_is_written_again(tmp_path: Path) -> None:
    ade_tree(tmp_path)
    script.prepare(tmp_path)
    path = tmp_path / ADE / "ade20k_panoptic_train/ADE_train_00000002.png"
    before, json_file = path.read_bytes(), tmp_path / ADE / "ade20k_panoptic_train.json"
    content = json_file.read_bytes()
    path.unlink()
    script.prepare(tmp_path)
    assert (path.read_bytes(), json_file.read_bytes()) == (before, content)


@pytest.mark.parametrize(
    ("instances", "message"),
    [
        (np.full((HEIGHT, WIDTH, 3), 101, np.uint8), r"categories \[101\], expected 1 to 100"),
        (np.full((HEIGHT, WIDTH, 3), (0, 1, 0), np.uint8), r"categories \[0\]"),
        (np.zeros((HEIGHT, WIDTH), np.uint8), "category in its first channel"),
        (np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8), "61×40 .* 60×40"),
    ],
)
def test_an_instance_map_in_another_format_is_an_error_that_names_it(
    tmp_path: Path, instances: np.ndarray, message: str
) -> None:
    ade_tree(tmp_path)
    path = save(tmp_path / ADE / "annotations_instance/training/ADE_train_00000002.png", instances)
    with pytest.raises(ValueError, match=message) as error:
        script.prepare(tmp_path)
    assert str(path) in str(error.value)
    assert not (tmp_path / ADE / "ade20k_panoptic_train.json").exists()


def test_an_instance_map_with_two_channels_is_accepted(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", ade_instances()[..., :2])
    np.testing.assert_array_equal(read_instances(path, [1, 4]), ade_instances()[..., :2])


def test_an_image_of_another_size_is_an_error(tmp_path: Path) -> None:
    ade_tree(tmp_path)
    save_photo(tmp_path / ADE / "images/validation/ADE_val_00000001.jpg", HEIGHT, WIDTH - 1)
    with pytest.raises(ValueError, match=r"60×40 pixels, but its image .* is 59×40"):
        script.prepare(tmp_path)
