"""datasets/prepare_ade20k_ins_seg.py; test_prepare_published.py tests all such scripts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask_former.data.datasets.catalog import read_table
from mask_former.data.formats.rle import decode_mask
from mask_former.evaluation.instance import COCOEvaluator
from tests.helpers.preparation_trees import (
    ADE,
    HEIGHT,
    WIDTH,
    ade_instances,
    ade_tree,
    registered,
    save,
)
from tests.helpers.scripts import load_script

script = load_script("datasets/prepare_ade20k_ins_seg.py")
BED, PERSON = 7, 12  # category ids


@pytest.fixture
def root(tmp_path: Path) -> Path:
    ade_tree(tmp_path)
    return tmp_path


def written(root: Path, split: str) -> dict[str, Any]:
    return json.loads((root / ADE / f"ade20k_instance_{split}.json").read_text())


def test_each_pair_of_category_and_number_is_an_instance(root: Path) -> None:
    """The second bed has the number of the person, which makes them two instances."""
    pixels = ade_instances()
    pixels[pixels[..., 1] == 3, 1] = 2
    path = f"{ADE}/annotations_instance/validation/ADE_val_00000001.png"
    save(root / path, pixels)
    script.prepare(root)
    content = written(root, "val")
    sizes = {"height": HEIGHT, "width": WIDTH}
    image = {"id": "ADE_val_00000001", "file_name": "ADE_val_00000001.jpg", **sizes}
    assert content["images"] == [image]
    expected = {}
    for y, x in np.ndindex(HEIGHT, WIDTH):
        category, number = pixels[y, x, :2].tolist()
        if number:
            expected.setdefault((category, number), np.zeros((HEIGHT, WIDTH)))[y, x] = 1
    source_of = {c.id: c.source_id for c in read_table("ade20k_instance").categories}
    assert len(content["annotations"]) == len(expected) == 3
    for annotation, ((category, _), mask) in zip(
        content["annotations"], sorted(expected.items()), strict=True
    ):
        assert source_of[annotation["category_id"]] == category
        assert (decode_mask(annotation["segmentation"]) == mask).all()
        rows, columns = np.nonzero(mask)
        box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
        assert (annotation["bbox"], annotation["area"]) == (box, mask.sum())
        assert (annotation["image_id"], annotation["iscrowd"]) == ("ADE_val_00000001", 0)


def test_annotations_are_numbered_from_1_over_all_images(root: Path) -> None:
    script.prepare(root)
    assert [a["id"] for a in written(root, "train")["annotations"]] == [1, 2, 3, 4, 5, 6]
    assert [c["id"] for c in written(root, "train")["categories"]][:3] == [7, 8, 10]


@pytest.mark.usefixtures("restored_catalogs")
def test_registered_instances_have_contiguous_classes_and_an_evaluator(root: Path) -> None:
    script.prepare(root)
    (record,) = registered("ade20k_instance_val", root)
    assert [a["category_id"] for a in record["annotations"]] == [0, 0, 3]
    COCOEvaluator("ade20k_instance_val")


def test_an_image_without_instances_is_listed_without_annotations(root: Path) -> None:
    nothing = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    save(root / f"{ADE}/annotations_instance/validation/ADE_val_00000001.png", nothing)
    script.prepare(root)
    content = written(root, "val")
    assert len(content["images"]) == 1 and content["annotations"] == []
