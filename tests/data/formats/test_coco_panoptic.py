"""COCO panoptic format: panopticapi reads the written ids, and segments are described."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_former.data.datasets.loaders import load_panoptic
from mask_former.data.formats.coco_panoptic import segments_info, write_ids
from tests.helpers import own_data


def test_ids_of_up_to_three_bytes_survive_the_png(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [256, 65535, 65536], [65537, 2**24 - 1, 70000]], np.int32)
    write_ids(tmp_path / "a.png", ids)
    for y, row in enumerate(np.asarray(Image.open(tmp_path / "a.png")).tolist()):
        for x, (red, green, blue) in enumerate(row):
            assert red + 256 * green + 65536 * blue == ids[y, x]
    utils = pytest.importorskip("panopticapi.utils")
    np.testing.assert_array_equal(utils.rgb2id(np.asarray(Image.open(tmp_path / "a.png"))), ids)


def test_no_partial_file_is_left(tmp_path: Path) -> None:
    write_ids(tmp_path / "a.png", np.zeros((2, 2), np.int32))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_segments_are_described_by_area_and_box_without_void() -> None:
    ids = np.array([[0, 7, 7, 0], [0, 7, 0, 0], [2, 0, 0, 2]], np.int32)
    assert segments_info(ids, {7: 70, 2: 20}) == [
        {"id": 2, "category_id": 20, "area": 2, "bbox": [0, 2, 4, 1], "iscrowd": 0},
        {"id": 7, "category_id": 70, "area": 3, "bbox": [1, 0, 2, 2], "iscrowd": 0},
    ]


def test_a_segment_without_an_id_is_refused_when_the_json_is_loaded(tmp_path):
    images, path, segments = own_data.write_panoptic(tmp_path)
    content = json.loads(path.read_text())
    del content["annotations"][0]["segments_info"][0]["id"]
    path.write_text(json.dumps(content))
    ids = {"contiguous_ids": {2: 0, 4: 1}, "thing_ids": {4}}
    with pytest.raises(ValueError, match=rf"{path.name}: .* the key 'id' is missing"):
        load_panoptic(images, segments, path, **ids)
