"""datasets/prepare_ade20k_full_sem_seg.py; test_prepare_published.py tests all such scripts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.config.loading import load_cfg
from mask_former.data.datasets.catalog import read_table
from mask_former.evaluation.build import build_evaluator
from tests.helpers.paths import ROOT
from tests.helpers.preparation_trees import (
    FULL,
    HEIGHT,
    LARGE,
    WIDTH,
    full_annotation,
    full_objects,
    full_tree,
    pixels,
    registered,
    save,
    save_photo,
)
from tests.helpers.scripts import load_script

script = load_script("datasets/prepare_ade20k_full_sem_seg.py")
IGNORED = 65535
WALL, PERSON = 0, 11  # class ids of the objects 2978 and 1831


def test_the_tables_object_indices_equal_the_datasets(shared_dir: Path) -> None:
    spec = json.loads((shared_dir / "spec" / "ade20k_full_ids.json").read_text(encoding="utf-8"))
    table = read_table("ade20k_full")
    found = [(c.source_id, i, c.name) for i, c in enumerate(table.categories)]
    assert found == [tuple(entry) for entry in spec["classes"]]
    assert len(table.source_ids) == 847


def test_the_tables_object_indices_have_the_expected_checksum() -> None:
    table = read_table("ade20k_full")
    assert (table.source_ids[2978], table.source_ids[1831]) == (WALL, PERSON)
    indices = json.dumps([c.source_id for c in table.categories])
    assert hashlib.sha256(indices.encode()).hexdigest()[:16] == "a0df1c9e166ee637"


def test_objects_get_their_class_for_any_last_digit_of_red_and_blue() -> None:
    classes = read_table("ade20k_full").source_ids
    indices = np.tile(np.arange(26 * 256 - 1), (2, 1))  # ⌊R/10⌋ up to 25
    indices = indices[:, indices[0] // 256 < 25]  # R up to 249, for an offset of up to 9
    found = script.decode(full_annotation(indices), Path("a.png"))
    assert found.dtype == np.uint16
    expected = [[classes.get(int(index), IGNORED) for index in row] for row in indices]
    assert found.tolist() == expected


def test_red_of_250_and_more_is_decoded_too() -> None:
    seg = np.array([[[255, 255, 0], [250, 0, 0]]], np.uint8)
    assert script.decode(seg, Path("a.png")).tolist() == [[IGNORED, IGNORED]]


def test_a_small_image_is_copied_and_its_labels_have_16_bits(tmp_path: Path) -> None:
    full_tree(tmp_path)
    script.prepare(tmp_path)
    name = "training/urban/street/ADE_train_00000001.jpg"
    source = (tmp_path / FULL / "images/ADE" / name).read_bytes()
    output = tmp_path / FULL
    assert (output / "images_detectron2/training/ADE_train_00000001.jpg").read_bytes() == source
    labels = output / "annotations_detectron2/training/ADE_train_00000001.tif"
    assert Image.open(labels).mode == "I;16"
    expected = np.full((HEIGHT, WIDTH), WALL)
    expected[HEIGHT // 2 :] = PERSON
    expected[:, -10:] = IGNORED
    np.testing.assert_array_equal(pixels(labels), expected)


def test_a_large_image_is_resized_to_a_shorter_side_of_512(tmp_path: Path) -> None:
    full_tree(tmp_path)
    script.prepare(tmp_path)
    height, width = LARGE
    size = (round(width * 512 / height), 512)
    image = Image.open(tmp_path / FULL / "images_detectron2/training/ADE_train_00000002.jpg")
    labels = pixels(tmp_path / FULL / "annotations_detectron2/training/ADE_train_00000002.tif")
    assert image.size == labels.shape[::-1] == size
    # Nearest neighbour: each pixel has the value of the source at its centre.
    ys = ((np.arange(size[1]) + 0.5) * height / size[1]).astype(int)
    xs = ((np.arange(size[0]) + 0.5) * width / size[0]).astype(int)
    source = script.decode(full_annotation(full_objects(*LARGE)), Path())
    np.testing.assert_array_equal(labels, source[np.ix_(ys, xs)])


def test_a_large_image_is_resized_bilinearly(tmp_path: Path) -> None:
    stripes = np.zeros((1024, 1200), np.uint8)
    stripes[:, ::2] = 255  # stripes of one pixel, which average at half the size
    image = save(tmp_path / "a.jpg", np.stack([stripes] * 3, axis=-1))
    seg = save(tmp_path / "a_seg.png", full_annotation(full_objects(1024, 1200)))
    script.convert(image, seg, tmp_path / "b.jpg", tmp_path / "b.tif")
    found = pixels(tmp_path / "b.jpg").astype(int)
    assert found.shape == (512, 600, 3)
    assert np.abs(found[:, 1:-1] - 127.5).max() <= 5  # tolerance for JPEG compression


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 512), (512, 512)),
        ((2000, 512), (2000, 512)),
        ((513, 513), (512, 512)),
        ((1024, 2048), (512, 1024)),
        ((683, 1024), (512, 768)),
        ((60, 40), (60, 40)),
    ],
)
def test_images_are_reduced_to_the_expected_size(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert script.reduced_size(*size) == expected


def test_the_split_comes_from_the_name(tmp_path: Path) -> None:
    full_tree(tmp_path)
    script.prepare(tmp_path)
    output = tmp_path / FULL / "annotations_detectron2"
    names = {split: sorted(p.stem for p in (output / split).iterdir()) for split in SPLITS}
    assert names == SPLITS


SPLITS = {
    "training": ["ADE_train_00000001", "ADE_train_00000002"],
    "validation": ["ADE_val_00000001"],
}


def test_an_annotation_without_colours_or_of_another_size_is_an_error(tmp_path: Path) -> None:
    image = save_photo(tmp_path / "a.jpg")
    targets = tmp_path / "b.jpg", tmp_path / "b.tif"
    grey = save(tmp_path / "grey_seg.png", np.zeros((HEIGHT, WIDTH), np.uint8))
    with pytest.raises(ValueError, match=r"grey_seg.*RGB PNG"):
        script.convert(image, grey, *targets)
    other = save(tmp_path / "other_seg.png", np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    with pytest.raises(ValueError, match=r"other_seg\.png is 61×40 .*a\.jpg is 60×40"):
        script.convert(image, other, *targets)


@pytest.mark.usefixtures("restored_catalogs")
def test_a_correct_prediction_scores_100(tmp_path: Path) -> None:
    full_tree(tmp_path)
    script.prepare(tmp_path)
    (record,) = registered("ade20k_full_sem_seg_val", tmp_path)
    labels = pixels(Path(record["sem_seg_file_name"])).astype(np.int64)
    prediction = np.where(labels == IGNORED, 5, labels)
    scores = torch.nn.functional.one_hot(torch.from_numpy(prediction), 847).permute(2, 0, 1)
    cfg = load_cfg(str(ROOT / "configs/ade20k-full-847/maskformer_R50_bs16_200k.yaml"))
    evaluator = build_evaluator(cfg, "ade20k_full_sem_seg_val", str(tmp_path / "predictions"))
    evaluator.reset()
    evaluator.process([record], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)
