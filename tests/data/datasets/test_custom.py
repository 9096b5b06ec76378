"""Custom datasets, registered from Python or from the table that is written for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.config.keys import get_mask_former_cfg
from mask_former.data import register_instances, register_panoptic, register_semantic
from mask_former.data.datasets.catalog import read_table, register_table
from mask_former.data.datasets.config_keys import register_own_tables
from mask_former.data.datasets.custom import Annotated, json_table, semantic_table, write_table
from mask_former.data.mappers import MaskFormerSemanticDatasetMapper
from mask_former.evaluation.semantic import SemSegEvaluator
from tests.helpers.own_data import write_image, write_instances, write_labels, write_panoptic

pytestmark = pytest.mark.usefixtures("restored_catalogs")


LABELS = np.array([[0, 1, 1, 2], [0, 2, 2, 2]])


def write_semantic(folder: Path, labels: np.ndarray, dtype: Any = np.uint8) -> tuple[Path, Path]:
    write_image(folder / "i" / "a.png", labels.shape)
    write_labels(folder / "l" / "a.png", labels, dtype)
    return folder / "i", folder / "l"


def training_labels(name: str, num_classes: int) -> np.ndarray:
    """Return the H×W label map that the mapper makes of the only image without augmentation."""
    (record,) = DatasetCatalog.get(name)
    mapper = MaskFormerSemanticDatasetMapper(
        augmentations=[],
        image_format="RGB",
        ignore_label=MetadataCatalog.get(name).ignore_label,
        num_classes=num_classes,
    )
    example = mapper(record)
    assert "label_map" not in example
    masks = {int(c): m.numpy() for c, m in zip(*targets(example), strict=True)}
    labels = example["sem_seg"].numpy()
    for class_id in range(num_classes):
        assert (masks.get(class_id, np.zeros(labels.shape, bool)) == (labels == class_id)).all()
    return labels


def targets(example: dict[str, Any]) -> tuple[Any, Any]:
    return example["instances"].gt_classes, example["instances"].gt_masks


def evaluate(name: str, prediction: np.ndarray, num_classes: int) -> dict[str, float]:
    """Return the metrics of a prediction (H×W class ids) for the only image."""
    (record,) = DatasetCatalog.get(name)
    scores = torch.nn.functional.one_hot(torch.as_tensor(prediction), num_classes).permute(2, 0, 1)
    evaluator = SemSegEvaluator(name, distributed=False)
    evaluator.reset()
    evaluator.process([record], [{"sem_seg": scores.float()}])
    return evaluator.evaluate()["sem_seg"]


# ------------------------------------------------------------------------------------ semantic

RECIPES = {  # stored labels, classes, ignore label, dtype, expected class ids (None: ignored)
    "class ids": ([0, 1, 2], ["a", "b", "c"], None, np.uint8, [0, 1, 2]),
    "class ids, some ignored": ([255, 1, 0], ["a", "b"], None, np.uint8, [None, 1, 0]),
    "binary masks": ([0, 255, 0], ["0: ground", "255: thing"], None, np.uint8, [0, 1, 0]),
    "background ignored": ([0, 255, 0], ["255: thing"], 0, np.uint8, [None, 0, None]),
    "one class only": ([7, 0, 7], ["0: a"], 7, np.uint8, [None, 0, None]),
    "labels that start at 1": ([1, 2, 0], ["1: a", "2: b"], 0, np.uint8, [0, 1, None]),
    "16 bit": ([300, 65535, 2], [f"c{i}" for i in range(301)], None, np.uint16, [300, None, 2]),
    "16 bit with values": ([9000, 0, 5], ["5: a", "9000: b"], 0, np.uint16, [1, None, 0]),
    "more classes than 8 bit": (
        [255, 0, 299],
        [f"{i + 1}: c{i}" for i in range(299)],
        0,
        np.uint16,
        [254, None, 298],
    ),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_way_to_store_labels_trains_and_evaluates_the_same_classes(
    tmp_path: Path, recipe: str
) -> None:
    stored, classes, ignore_label, dtype, expected = RECIPES[recipe]
    images, labels = write_semantic(tmp_path, np.array(stored)[LABELS], dtype)
    register_semantic("own", images, labels, classes, ignore_label=ignore_label)
    ignored = MetadataCatalog.get("own").ignore_label
    assert ignored >= len(classes)
    expected_labels = np.array([ignored if c is None else c for c in expected])[LABELS]
    assert training_labels("own", len(classes)).tolist() == expected_labels.tolist()
    perfect = np.where(expected_labels == ignored, 0, expected_labels)
    scores = evaluate("own", perfect, len(classes))
    assert scores["pACC"] == pytest.approx(100) and scores["mIoU"] == pytest.approx(100)
    wrong = (perfect + 1) % max(2, len(classes))
    if len(classes) > 1:
        assert evaluate("own", wrong, len(classes))["pACC"] == 0


def test_an_unknown_pixel_value_is_an_error_in_training_and_evaluation(tmp_path: Path) -> None:
    images, labels = write_semantic(tmp_path, np.array([0, 255, 254])[LABELS])
    register_semantic("own", images, labels, ["0: ground", "255: thing"])
    message = r"l/a\.png: found the pixel values \[254\], expected \[0, 255, 65535\]"
    with pytest.raises(ValueError, match=message):
        training_labels("own", 2)
    with pytest.raises(ValueError, match=message):
        evaluate("own", LABELS % 2, 2)


@pytest.mark.parametrize(
    ("classes", "ignore_label", "message"),
    [
        (["a", "b"], 1, "`ignore_label` is 1, the pixel value of a class"),
        (["3: a", "4: b"], 4, "`ignore_label` is 4, the pixel value of a class"),
        (["65536: a"], None, "an `id` in 0 … 65535"),
    ],
)
def test_classes_that_label_maps_cannot_store_are_an_error(
    tmp_path: Path, classes: list[str], ignore_label: int | None, message: str
) -> None:
    images, labels = write_semantic(tmp_path, LABELS)
    with pytest.raises(ValueError, match=message):
        register_semantic("own", images, labels, classes, ignore_label=ignore_label)


def test_the_default_ignore_label_is_255_unless_a_class_uses_it(tmp_path: Path) -> None:
    data = {"own": Annotated(tmp_path, labels=tmp_path)}
    assert semantic_table(data, [str(i) for i in range(255)]).ignore_label == 255
    assert semantic_table(data, [str(i) for i in range(256)]).ignore_label == 65535
    assert semantic_table(data, ["0: a", "255: b"]).ignore_label == 65535


def test_registering_again_replaces_only_custom_datasets(tmp_path: Path) -> None:
    images, labels = write_semantic(tmp_path, LABELS)
    register_semantic("own", images, labels, ["a", "b", "c"])
    loader = DatasetCatalog["own"]
    register_semantic("own", images, labels, ["a", "b", "c"])
    assert DatasetCatalog["own"] is loader
    register_semantic("own", images, labels, ["x", "y", "z"])
    assert MetadataCatalog.get("own").stuff_classes == ["x", "y", "z"]
    with pytest.raises(ValueError, match=r"'camvid_sem_seg_val'.* already registered"):
        register_semantic("camvid_sem_seg_val", images, labels, ["a", "b", "c"])


def test_a_missing_folder_is_an_error_at_once(tmp_path: Path) -> None:
    images, _ = write_semantic(tmp_path, LABELS)
    with pytest.raises(FileNotFoundError, match="nowhere is missing"):
        register_semantic("own", images, tmp_path / "nowhere", ["a"])


# ------------------------------------------------------------------------------ JSON annotations


def test_classes_of_instances_come_from_the_json(tmp_path: Path) -> None:
    images, json_file = write_instances(tmp_path)
    register_instances("own", images, json_file)
    assert MetadataCatalog.get("own").thing_classes == ["cat", "dog"]
    assert MetadataCatalog.get("own").evaluator_type == "coco"
    classes = [a["category_id"] for r in DatasetCatalog.get("own") for a in r["annotations"]]
    assert sorted(set(classes)) == [0, 1]


def test_classes_and_things_of_panoptic_data_come_from_the_json(tmp_path: Path) -> None:
    images, json_file, panoptic = write_panoptic(tmp_path)
    register_panoptic("own", images, json_file, panoptic)
    metadata = MetadataCatalog.get("own")
    assert metadata.stuff_classes == ["ground", "dog"]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 1}
    segments = DatasetCatalog.get("own")[0]["segments_info"]
    assert [(s["category_id"], s["isthing"]) for s in segments] == [(0, False), (1, True)]


def test_a_json_of_the_other_format_is_an_error_that_names_the_argument(
    tmp_path: Path,
) -> None:
    images, json_file, panoptic = write_panoptic(tmp_path / "p")
    with pytest.raises(ValueError, match=r"panoptic format.*the folder of its PNGs"):
        register_instances("own", images, json_file)
    images, json_file = write_instances(tmp_path / "i")
    with pytest.raises(ValueError, match=r"instance format.*Omit"):
        register_panoptic("own", images, json_file, panoptic)


def test_jsons_with_different_categories_are_an_error(tmp_path: Path) -> None:
    images, json_file = write_instances(tmp_path)
    content = json.loads(json_file.read_text())
    content["categories"][0]["name"] = "horse"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    data = {n: Annotated(images, json_file=f) for n, f in [("a", json_file), ("b", other)]}
    with pytest.raises(
        ValueError, match=r"other\.json and .*id 1 is \('horse', True\) and \('cat'"
    ):
        json_table(data)


# ------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("kind", ["semantic", "instances", "panoptic"])
def test_a_table_survives_writing_and_reading(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "new" / "own_table.json"
    if kind == "semantic":
        images, labels = write_semantic(tmp_path, LABELS)
        data = {"own": Annotated(images, labels=labels)}
        table = semantic_table(data, ["3: Öl #010203", "4: b #040506"], ignore_label=0, path=path)
    elif kind == "instances":
        images, json_file = write_instances(tmp_path)
        table = json_table({"own": Annotated(images, json_file=json_file)}, path=path)
    else:
        images, json_file, panoptic = write_panoptic(tmp_path)
        own = Annotated(images, json_file=json_file, panoptic=panoptic)
        table = json_table({"own": own}, path=path)
    write_table(table)
    assert read_table(path) == table
    register_table(path)
    assert len(DatasetCatalog.get("own")) == 1


def test_paths_in_a_table_may_be_relative_to_it(tmp_path: Path) -> None:
    write_semantic(tmp_path, LABELS)
    datasets = {"own": {"kind": "sem_seg", "image_root": "i", "sem_seg_root": "l"}}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"datasets": datasets, "categories": [{"name": n} for n in "abc"]}))
    cfg = get_mask_former_cfg()
    cfg.DATASETS.TABLES = (str(path),)
    register_own_tables(cfg)
    assert training_labels("own", 3).tolist() == LABELS.tolist()
