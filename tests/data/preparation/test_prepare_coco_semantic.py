"""datasets/prepare_coco_semantic_annos_from_panoptic_annos.py, besides what all scripts share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mask_former.data.datasets.catalog import read_table
from tests.helpers.preparation_trees import coco_ids, coco_tree, contents, pixels
from tests.helpers.scripts import load_script

script = load_script("datasets/prepare_coco_semantic_annos_from_panoptic_annos.py")
JSON = "coco/annotations/panoptic_{}2017.json"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    coco_tree(tmp_path)
    return tmp_path


def change(root: Path, edit: Any) -> None:
    path = root / JSON.format("val")
    content = json.loads(path.read_text())
    edit(content["annotations"][0])
    path.write_text(json.dumps(content))


def test_pixels_hold_the_contiguous_class_also_of_crowds_and_255_outside_segments(
    root: Path,
) -> None:
    script.prepare(root)
    labels = pixels(root / "coco/panoptic_semseg_val2017/000000000139.png")
    names = read_table("coco_panoptic").names
    class_of = {0: 255, 7: names.index("cat"), 65536: names.index("dog")}
    class_of[300] = names.index("wall-other-merged")
    ids = coco_ids()
    assert labels.dtype == np.uint8
    for y, x in np.ndindex(*ids.shape):
        assert labels[y, x] == class_of[int(ids[y, x])]


def test_a_split_without_a_json_is_skipped_and_named(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / JSON.format("train")).unlink()
    assert script.main(["--root", str(root), "--workers", "1"]) == 0
    assert "panoptic_train2017.json is missing: this split is skipped" in capsys.readouterr().out
    assert (root / "coco/panoptic_semseg_val2017").is_dir()
    assert not (root / "coco/panoptic_semseg_train2017").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda a: a.update(file_name="../../x.png"), r"refused the file_name '../../x.png'"),
        (lambda a: a["segments_info"][0].update(category_id=12), r"categories \[12\].*133"),
        (lambda a: a["segments_info"][0].update(id=8), "disagree"),
        (lambda a: a.pop("segments_info"), "the key 'segments_info' is missing"),
        (lambda a: a.update(file_name=3), "wrong type"),
    ],
)
def test_a_json_that_is_malicious_or_of_another_dataset_is_an_error_and_writes_no_label_map(
    root: Path, edit: Any, message: str
) -> None:
    change(root, edit)
    before = {name for name in contents(root) if "val2017" in name}
    with pytest.raises(ValueError, match=message):
        script.prepare(root)
    assert {name for name in contents(root) if "val2017" in name} == before
    assert not list(root.parent.glob("x.png"))
