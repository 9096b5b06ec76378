"""Ids of classes and images are those of their dataset; otherwise there is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.cli.dataset_ids import DatasetIds

NAMES = ["sky", "road", "car"]


@pytest.fixture
def dataset():
    """Return a function that registers a dataset by records and metadata, and returns its name."""
    name = "dataset_ids_test"

    def register(records, **metadata):
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    DatasetCatalog.pop(name, None)
    MetadataCatalog.pop(name, None)


RECORDS = [{"file_name": f"/data/{f}", "image_id": i} for i, f in enumerate(["a.png", "b.png"])]


def test_ids_of_a_panoptic_dataset_are_those_of_things_and_stuff(dataset):
    things, stuff = {70: 2}, {5: 0, 9: 1}
    name = dataset(
        RECORDS, thing_dataset_id_to_contiguous_id=things, stuff_dataset_id_to_contiguous_id=stuff
    )
    ids = DatasetIds.of_dataset(name)
    assert ids.category_ids == {0: 5, 1: 9, 2: 70}
    assert [ids.image_id(Path(f"elsewhere/{f}.png")) for f in "ab"] == [0, 1]


def test_a_dataset_without_ids_is_refused(dataset):
    name = dataset([{"file_name": "a.png"}], stuff_classes=NAMES)
    with pytest.raises(ValueError, match="has no ids of categories and images"):
        DatasetIds.of_dataset(name)
    with pytest.raises(KeyError, match="no dataset 'none'"):
        DatasetIds.of_dataset("none")


def write(path, images, categories):
    path.write_text(json.dumps({"images": images, "categories": categories}))
    return path


CATEGORIES = [{"id": 7, "name": "car"}, {"id": 3, "name": "sky"}, {"id": 4, "name": "dog"}]


def test_classes_of_a_json_are_found_by_name_and_annotations_are_not_needed(tmp_path):
    path = write(tmp_path / "x.json", [{"file_name": "a.png", "id": "A"}], CATEGORIES)
    ids = DatasetIds.of_json(path, NAMES)
    assert ids.category_ids == {0: 3, 2: 7} and ids.image_id(Path("x/a.png")) == "A"
    ids.check_classes([0, 2], NAMES)
    with pytest.raises(ValueError, match=r"x\.json has no category for 1 .* such as 'road'"):
        ids.check_classes([0, 1], NAMES)


def test_images_of_one_name_are_distinguished_by_their_folders(tmp_path):
    images = [{"file_name": f"{f}/a.png", "id": i} for i, f in enumerate(["train/x", "val/x"])]
    ids = DatasetIds.of_json(write(tmp_path / "x.json", images, CATEGORIES), NAMES)
    assert ids.image_id(Path("data/val/x/a.png")) == 1
    assert ids.image_id(Path("data/train/x/a.png")) == 0
    with pytest.raises(ValueError, match=r"has 2 images named a\.png"):
        ids.image_id(Path("data/other/a.png"))
    with pytest.raises(ValueError, match=r"has no image named b\.png"):
        ids.image_id(Path("data/val/x/b.png"))


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "is not a JSON"),
        ("[]", "expected COCO's `images`"),
        ('{"images": [{"id": 1, "file_name": "a"}]}', "expected COCO's `categories`"),
    ],
)
def test_a_file_that_is_not_a_coco_json_is_named(tmp_path, text, reason):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        DatasetIds.of_json(path, NAMES)
    with pytest.raises(FileNotFoundError):
        DatasetIds.of_json(tmp_path / "y.json", NAMES)


@pytest.mark.parametrize(
    "images",
    [{"a": 1}, ["x"], [{"file_name": 5, "id": 1}], [{"file_name": "a.png", "id": [1]}]],
)
def test_ids_and_names_of_other_types_are_refused_by_the_files_name(tmp_path, images):
    path = write(tmp_path / "x.json", images, CATEGORIES)
    with pytest.raises(ValueError, match=r"x\.json: expected COCO's `images`, each with file_name"):
        DatasetIds.of_json(path, NAMES)
