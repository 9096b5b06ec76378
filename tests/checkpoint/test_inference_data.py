"""Checkpoints hold the data that inference needs, as plain data without local paths."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog

from mask_former.checkpoint.finetuning import Finetuning
from mask_former.checkpoint.inference_data import (
    classes_of,
    inference_data,
    inference_settings,
    plain_settings,
    read_inference_data,
)
from mask_former.config.loading import cfg_from_settings, load_cfg
from mask_former.engine.hooks import DrawPredictions
from mask_former.export import describe
from mask_former.predictor import MaskFormerPredictor
from mask_former.utils.weight_files import read_extras
from tests.helpers.tiny_model import COLORS, DATASET, NAMES, write_tiny_model
from tests.helpers.tiny_trainer import TinyTrainer


@pytest.fixture(scope="module")
def cfg(tmp_path_factory):
    """The config of a model trained with paths and settings that must not be published."""
    config, weights = write_tiny_model(tmp_path_factory.mktemp("model"), PANOPTIC_ON=True)
    words = ["MODEL.WEIGHTS", str(weights), "OUTPUT_DIR", "/home/someone/output"]
    words += ["MODEL.MASK_FORMER.FINETUNE", "True", "DATASETS.CHECK", "off"]
    words += ["MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM", "secret_dataset"]
    return load_cfg(str(config), words)


def test_inference_data_restores_the_keys_that_inference_reads(cfg):
    data = read_inference_data({"inference": inference_data(cfg)}, "x.pth")
    found = cfg_from_settings(data.settings, [], "x.pth")
    for node in ("BACKBONE", "SWIN", "SEM_SEG_HEAD", "RESNETS", "PIXEL_MEAN", "PIXEL_STD"):
        assert yaml.safe_dump(_plain(found.MODEL[node])) == yaml.safe_dump(_plain(cfg.MODEL[node]))
    assert found.MODEL.MASK_FORMER.TEST == cfg.MODEL.MASK_FORMER.TEST
    for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
        assert found.INPUT[key] == cfg.INPUT[key]
    assert found.TEST.DETECTIONS_PER_IMAGE == cfg.TEST.DETECTIONS_PER_IMAGE
    assert list(found.DATASETS.TRAIN) == [DATASET]


def _plain(node):
    return yaml.safe_load(node.dump()) if hasattr(node, "dump") else list(node)


def test_inference_data_is_plain_data_in_a_pth_and_in_json(cfg, tmp_path):
    data = inference_data(cfg)
    torch.save(data, tmp_path / "x.pth")
    assert torch.load(tmp_path / "x.pth", weights_only=True) == data
    assert json.loads(json.dumps(data)) == data


def test_classes_are_stored_with_names_colours_and_things(cfg):
    classes = read_inference_data({"inference": inference_data(cfg)}, "x.pth").classes
    assert classes.names == NAMES and [list(color) for color in classes.colors] == COLORS
    assert classes.thing_ids == [2, 3]


def test_paths_devices_and_training_keys_are_not_stored(cfg):
    text = json.dumps(inference_data(cfg))
    for word in ("/home/someone", "tiny.pth", "secret", "DEVICE", "SOLVER", "OUTPUT_DIR", "TABLES"):
        assert word not in text, word


def test_plain_settings_are_those_of_the_yaml_text(cfg):
    assert plain_settings(cfg) == yaml.safe_load(cfg.dump())


def test_inference_settings_survive_a_round_trip(cfg):
    settings = inference_settings(cfg)
    again = inference_settings(cfg_from_settings(settings, [], "x"))
    assert again == settings


def test_weights_paths_and_devices_of_a_foreign_entry_are_ignored(cfg):
    data = inference_data(cfg)
    settings = yaml.safe_load(data["config"])
    settings["MODEL"] |= {"WEIGHTS": "/etc/passwd", "DEVICE": "cuda:7", "COMPILE": True}
    settings |= {"OUTPUT_DIR": "/root", "DATASETS": {"TABLES": ["/x.json"], "TEST": ["a"]}}
    found = read_inference_data({"inference": {**data, "config": yaml.safe_dump(settings)}}, "x")
    assert not {"WEIGHTS", "DEVICE", "COMPILE"} & set(found.settings["MODEL"])
    assert found.settings["DATASETS"] == {"TEST": ["a"]} and "OUTPUT_DIR" not in found.settings


def test_a_checkpoint_without_the_entry_has_none():
    assert read_inference_data({"class_names": ["a"]}, "x.pth") is None


@pytest.mark.parametrize(
    "change, message",
    [
        ({"config": "a: [1"}, "while parsing"),
        ({"config": "just text"}, "not a YAML text with the key MODEL"),
        ({"config": "MODEL: 3"}, "not a YAML text with the key MODEL"),
        ({"config": "!!python/object/apply:os.system ['ls']"}, "could not determine a constructor"),
        ({"config": None}, "NoneType|None"),
        ({"classes": [{"name": "sky"}]}, "Classes are a list of dicts"),
        ({"classes": "sky"}, "Classes are a list of dicts"),
        ({"classes": None}, "Classes|NoneType"),
    ],
)
def test_the_error_for_a_broken_entry_names_the_file_the_fault_and_the_fix(cfg, change, message):
    entry = {**inference_data(cfg), **change}
    with pytest.raises(ValueError, match=rf"(?s)^x\.pth: .*({message}).*config_file="):
        read_inference_data({"inference": entry}, "x.pth")


@pytest.mark.parametrize("entry", ["text", 3, ["a"], {}, {"config": "MODEL: {}"}])
def test_an_entry_of_another_type_is_refused(entry):
    with pytest.raises(ValueError, match=r"^x\.pth: its 'inference' entry.*config_file="):
        read_inference_data({"inference": entry}, "x.pth")


def test_classes_come_from_the_training_data_or_else_the_test_data(cfg):
    MetadataCatalog.get("other_classes_test").set(stuff_classes=["a", "b", "c", "d"])
    changed = cfg.clone()
    changed.defrost()
    changed.DATASETS.TEST = ("other_classes_test",)
    assert classes_of(changed).names == NAMES
    changed.DATASETS.TRAIN = ("nobody_knows_it",)
    assert classes_of(changed).names == ["a", "b", "c", "d"]
    changed.DATASETS.TEST = ()
    assert classes_of(changed).names == ["class 0", "class 1", "class 2", "class 3"]


def test_a_class_list_of_another_length_is_ignored_with_a_warning(cfg, caplog):
    MetadataCatalog.get("two_lists").set(stuff_classes=["a", "b", "c"], thing_classes=["b"])
    changed = cfg.clone()
    changed.defrost()
    changed.DATASETS.TRAIN, changed.DATASETS.TEST = ("two_lists",), ()
    for count, names in ((3, ["a", "b", "c"]), (1, ["b"]), (2, None)):
        assert not caplog.records
        changed.MODEL.SEM_SEG_HEAD.NUM_CLASSES = count
        assert classes_of(changed).known_names == names
    assert "NUM_CLASSES is 2, but" in caplog.text and "{'two_lists': 3}" in caplog.text
    assert classes_of(changed, ["x", "y"]).known_names == ["x", "y"]


def test_the_names_in_a_checkpoint_are_used_if_no_dataset_has_names(cfg):
    assert classes_of(cfg, ["a", "b", "c", "d"]).names == NAMES
    changed = cfg.clone()
    changed.defrost()
    changed.DATASETS.TRAIN = changed.DATASETS.TEST = ()
    assert classes_of(changed, ["a", "b", "c", "d"]).names == ["a", "b", "c", "d"]
    assert classes_of(changed, ["a", "b", "c"]).known_names is None
    assert classes_of(changed).known_names is None


def test_all_parts_of_the_project_name_the_same_classes(tmp_path):
    names = {"trained_on": ["sky", "car"], "tested_on": ["dog", "cat"]}
    for dataset, listed in names.items():
        MetadataCatalog.get(dataset).set(stuff_classes=listed)
    config, _ = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    words = ["DATASETS.TRAIN", "('trained_on',)", "DATASETS.TEST", "('tested_on',)"]
    words += ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2", "VIS_PERIOD", "1", "TEST.EVAL_PERIOD", "0"]
    words += ["OUTPUT_DIR", str(tmp_path), "MODEL.MASK_FORMER.FINETUNE", "True"]
    trainer = TinyTrainer(load_cfg(str(config), words))
    trainer.checkpointer.save("model")
    weights = str(tmp_path / "model.pth")
    cfg = load_cfg(str(config), [*words, "MODEL.WEIGHTS", weights])

    drawing = next(hook for hook in trainer._hooks if isinstance(hook, DrawPredictions))
    described = describe(cfg, {}, format_name="torchscript", size=None)["classes"]
    extras = read_extras(weights)
    found = {
        "export": [one["name"] for one in described],
        "TensorBoard": drawing.classes.names,
        "predictor": MaskFormerPredictor(cfg).classes.names,
        "from_pretrained": MaskFormerPredictor.from_pretrained(weights).classes.names,
        "checkpoint": [one["name"] for one in extras["inference"]["classes"]],
        "class_names": extras["class_names"],
        "fine-tuning": Finetuning.from_config(cfg).classes,
    }
    assert found == dict.fromkeys(found, names["trained_on"])
