"""Datasets get the evaluators of their type, and results are written as plain numbers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluators
from PIL import Image

from mask_former.evaluation import build as evaluation
from mask_former.evaluation.build import build_evaluator, write_results

CLASSES = {
    "SemSegEvaluator": "semantic",
    "COCOPanopticEvaluator": "panoptic",
    "COCOEvaluator": "instance",
    "CityscapesSemSegEvaluator": "cityscapes semantic",
    "CityscapesInstanceEvaluator": "cityscapes instance",
    "LVISEvaluator": "lvis",
}


@pytest.fixture
def dataset():
    """A function that registers the metadata of an evaluator type and returns the name."""
    names = []

    def register(evaluator_type, **metadata):
        name = f"test_evaluation_{len(names)}"
        names.append(name)
        if evaluator_type is not None:
            metadata["evaluator_type"] = evaluator_type
        MetadataCatalog.get(name).set(**metadata)
        return name

    yield register
    for name in names:
        MetadataCatalog.remove(name)
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)


@pytest.fixture
def built_evaluators(monkeypatch):
    """Kinds and output folders of the evaluators built so far, which are stand-ins."""
    built = []

    def stand_in(kind):
        class Evaluator:
            def __init__(self, dataset_name, output_dir=None, **options):
                built.append((kind, output_dir))

        return Evaluator

    for name, kind in CLASSES.items():
        monkeypatch.setattr(evaluation, name, stand_in(kind))
    return built


def turn_on(cfg, *results):
    for name in ("semantic", "panoptic", "instance"):
        cfg.MODEL.MASK_FORMER.TEST[f"{name.upper()}_ON"] = name in results


ALL = ("semantic", "panoptic", "instance")


@pytest.mark.parametrize(
    "kind, on, expected",
    [
        ("sem_seg", ALL, ["semantic"]),
        ("coco_panoptic_seg", ALL, ["panoptic", "instance"]),
        ("coco_panoptic_seg", ("panoptic",), ["panoptic"]),
        ("mapillary_vistas_panoptic_seg", ALL, ["panoptic", "instance", "semantic"]),
        ("mapillary_vistas_panoptic_seg", ("panoptic", "semantic"), ["panoptic", "semantic"]),
        ("lvis", ALL, ["lvis"]),
        ("coco", ALL, ["instance"]),
        ("ade20k_panoptic_seg", ALL, ["semantic", "panoptic", "instance"]),
        ("ade20k_panoptic_seg", ("semantic",), ["semantic"]),
        ("ade20k_panoptic_seg", ("panoptic",), ["panoptic"]),
        ("cityscapes_sem_seg", ALL, ["cityscapes semantic"]),
        ("cityscapes_instance", ALL, ["cityscapes instance"]),
        (
            "cityscapes_panoptic_seg",
            ALL,
            ["panoptic", "cityscapes semantic", "cityscapes instance"],
        ),
        ("cityscapes_panoptic_seg", ("instance",), ["cityscapes instance"]),
        ("cityscapes_panoptic_seg", ("semantic", "panoptic"), ["panoptic", "cityscapes semantic"]),
    ],
)
def test_evaluators_follow_the_dataset_type_and_the_results_of_the_model(
    cfg, dataset, built_evaluators, kind, on, expected, monkeypatch
):
    turn_on(cfg, *on)
    monkeypatch.setattr(evaluation, "find_spec", lambda package: package)
    built = build_evaluator(cfg, dataset(kind))
    assert [kind for kind, _ in built_evaluators] == expected
    assert isinstance(built, DatasetEvaluators) == (len(expected) > 1)


@pytest.mark.parametrize("on", [ALL, ("semantic", "panoptic")])
def test_a_panoptic_dataset_with_label_maps_is_also_evaluated_semantically(
    cfg, dataset, built_evaluators, on
):
    turn_on(cfg, *on)
    build_evaluator(cfg, dataset("coco_panoptic_seg", sem_seg_root="labels"))
    expected = ["panoptic", "instance", "semantic"] if on == ALL else ["panoptic", "semantic"]
    assert [kind for kind, _ in built_evaluators] == expected


def test_a_panoptic_dataset_without_label_maps_needs_another_result_than_the_semantic_one(
    cfg, dataset, built_evaluators
):
    turn_on(cfg, "semantic")
    with pytest.raises(ValueError, match="needs panoptic or instance results"):
        build_evaluator(cfg, dataset("coco_panoptic_seg"))


def test_lvis_needs_its_package_and_the_error_names_the_command_that_installs_it(
    cfg, dataset, monkeypatch
):
    monkeypatch.setattr(evaluation, "find_spec", lambda package: None)
    turn_on(cfg, "instance")
    with pytest.raises(ModuleNotFoundError, match="pip install lvis"):
        build_evaluator(cfg, dataset("lvis"))


@pytest.mark.parametrize("folder, expected", [(None, "run/inference"), ("other", "other")])
def test_predictions_go_to_the_output_folder(cfg, dataset, built_evaluators, folder, expected):
    cfg.OUTPUT_DIR = "run"
    turn_on(cfg, *ALL)
    for kind in ("sem_seg", "coco_panoptic_seg", "coco"):
        build_evaluator(cfg, dataset(kind), folder)
    assert [output for _, output in built_evaluators] == [expected] * 4


def test_save_predictions_off_writes_no_predictions(cfg, dataset, built_evaluators):
    cfg.OUTPUT_DIR = "run"
    cfg.TEST.SAVE_PREDICTIONS = False
    turn_on(cfg, "semantic", "panoptic")
    build_evaluator(cfg, dataset("ade20k_panoptic_seg"))
    assert built_evaluators == [("semantic", None), ("panoptic", None)]


@pytest.mark.parametrize("kind", [None, "keypoints"])
def test_an_unknown_type_is_an_error_that_names_the_dataset_and_the_known_ones(cfg, dataset, kind):
    name = dataset(kind)
    with pytest.raises(ValueError, match=f"{name}.*{kind!r}.*coco_panoptic_seg.*sem_seg"):
        build_evaluator(cfg, name)


@pytest.mark.parametrize(
    "kind, on", [("sem_seg", ("panoptic",)), ("coco", ("semantic",)), ("ade20k_panoptic_seg", ())]
)
def test_a_model_without_a_result_for_the_dataset_is_an_error(
    cfg, dataset, built_evaluators, kind, on
):
    turn_on(cfg, *on)
    name = dataset(kind)
    with pytest.raises(ValueError, match=rf"{name}.*has none.*MODEL.MASK_FORMER.TEST"):
        build_evaluator(cfg, name)
    assert built_evaluators == []


# The semantic evaluator


@pytest.fixture
def label_maps(dataset, tmp_path):
    """Name and label maps of a dataset of two images with 3 classes and 255 ignored."""
    rng = np.random.default_rng(0)
    maps, records = {}, []
    for name in ("a", "b"):
        maps[name] = rng.choice([0, 1, 2, 255], size=(6, 8)).astype(np.uint8)
        path = tmp_path / f"{name}.png"
        Image.fromarray(maps[name]).save(path)
        records.append({"file_name": name, "sem_seg_file_name": str(path)})
    registered = dataset("sem_seg", stuff_classes=["x", "y", "z"], ignore_label=255)
    DatasetCatalog.register(registered, lambda: records)
    return registered, maps


def slow_miou(predictions, maps):
    """Compute the mean of the classes' intersection over union in percent, pixel by pixel."""
    ious = []
    for c in range(3):
        both = either = 0
        for name, labels in maps.items():
            for predicted, true in zip(predictions[name].flat, labels.flat, strict=True):
                if true != 255:
                    both += predicted == c and true == c
                    either += predicted == c or true == c
        ious.append(both / either)
    return 100 * sum(ious) / 3


def test_the_semantic_evaluator_measures_miou_without_the_ignored_pixels(cfg, label_maps, tmp_path):
    name, maps = label_maps
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    turn_on(cfg, "semantic")
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    g = torch.Generator().manual_seed(0)
    predictions = {}
    for image in maps:
        scores = torch.rand(3, 6, 8, generator=g)
        predictions[image] = scores.argmax(0).numpy()
        evaluator.process([{"file_name": image}], [{"sem_seg": scores}])
    results = evaluator.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(slow_miou(predictions, maps))
    write_results(tmp_path / "results.json", {name: results})
    written = json.loads((tmp_path / "results.json").read_text())
    assert written[name]["sem_seg"]["mIoU"] == pytest.approx(slow_miou(predictions, maps))


def test_a_perfect_prediction_has_a_miou_of_100(cfg, label_maps, tmp_path):
    name, maps = label_maps
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    turn_on(cfg, "semantic")
    evaluator = build_evaluator(cfg, name)
    evaluator.reset()
    for image, labels in maps.items():
        scores = torch.stack([torch.from_numpy(labels == c) for c in range(3)]).float()
        evaluator.process([{"file_name": image}], [{"sem_seg": scores}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == pytest.approx(100)


# results.json


def test_results_are_plain_numbers_and_nonfinite_ones_are_null(tmp_path):
    path = tmp_path / "new" / "results.json"
    results = {
        "data": {
            "sem_seg": {
                "mIoU": np.float64(12.5),
                "count": np.int64(3),
                "tensor": torch.tensor(0.5),
                "nan": float("nan"),
                "numpy": np.float32("nan"),
                "inf": -math.inf,
            },
            "nested": {"by class": {"car": 1.0}},
            "empty": {},
        }
    }
    write_results(path, results)
    found = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    sem_seg = {"mIoU": 12.5, "count": 3.0, "tensor": 0.5, "nan": None, "numpy": None, "inf": None}
    nested = {"by class": {"car": 1.0}}
    assert found == {"data": {"sem_seg": sem_seg, "nested": nested, "empty": {}}}


def test_a_failed_write_keeps_the_previous_results(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, {"data": {"task": {"metric": 1.0}}})
    before = path.read_text()
    with pytest.raises(ValueError):
        write_results(path, {"data": {"task": {"metric": "no number"}}})

    def fail(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError):
        write_results(path, {"data": {"task": {"metric": 2.0}}})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
