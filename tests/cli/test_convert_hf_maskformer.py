"""tools/convert_hf_maskformer.py: conversion of transformers' models to ours and back."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from mask_former.cli import convert_hf_maskformer as tool
from mask_former.config.loading import load_cfg
from mask_former.inference import semantic_map
from mask_former.predictor.pretrained import find_pretrained
from mask_former.predictor.trained_model import load_trained_model
from mask_former.utils.weight_files import read_checkpoint, write_weights
from tests.helpers.golden_cases import fill_weights
from tests.helpers.huggingface_models import (
    NAMES,
    class_of,
    load_theirs,
    random_images,
    save_theirs,
    small_config,
    their_model,
    transformers,
    worst_difference,
)
from tests.helpers.tiny_model import DATASET, write_tiny_model
from tests.helpers.tiny_model import NAMES as TINY_NAMES


def run(*arguments: object) -> int:
    return tool.main([str(argument) for argument in arguments])


def to_theirs(folder: Path, output: Path) -> int:
    """Convert a folder of ours to transformers; return the exit code."""
    return run("--to-hf", folder / "config.yaml", folder / "model.safetensors", "--output", output)


def load_ours(folder: Path) -> torch.nn.Module:
    return load_trained_model(load_cfg(str(folder / "config.yaml"), ["MODEL.DEVICE", "cpu"]))


@pytest.mark.parametrize("kind", ["ResNet", "Mask2Former, Swin"])
def test_a_folder_of_transformers_is_converted_and_converted_back_unchanged(kind, tmp_path, capsys):
    theirs = their_model(kind)
    folder = save_theirs(theirs, tmp_path / "theirs", size_divisor=0)
    assert run(folder, "--output", tmp_path / "ours") == 0
    assert capsys.readouterr().out.count(str(tmp_path / "ours")) == 2
    assert read_checkpoint(tmp_path / "ours" / "model.safetensors")["class_names"] == NAMES
    assert worst_difference(theirs, load_ours(tmp_path / "ours"), random_images(64, 96)) < 1e-4

    assert to_theirs(tmp_path / "ours", tmp_path / "back") == 0
    back = load_theirs(tmp_path / "back")
    assert back.config.id2label == theirs.config.id2label
    assert back.config.label2id == theirs.config.label2id
    first, last = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert first.keys() == last.keys()
    for name, value in first.items():
        if not name.endswith(
            (
                "num_batches_tracked",
                *(f"encoder.{swin}.layernorm.weight" for swin in ("model", "swin")),
                *(f"encoder.{swin}.layernorm.bias" for swin in ("model", "swin")),
            )
        ):
            assert torch.equal(last[name], value), name
    for name in ("preprocessor_config.json", "config.json"):
        old, new = (json.loads((path / name).read_text()) for path in (folder, tmp_path / "back"))
        for key in ("image_processor_type", "size", "size_divisor", "image_mean", "image_std"):
            assert new.get(key) == pytest.approx(old.get(key)), key


def test_our_model_is_converted_to_transformers_and_converted_back_unchanged(tmp_path):
    config, weights = write_tiny_model(tmp_path)
    ours = load_trained_model(load_cfg(str(config), ["MODEL.WEIGHTS", str(weights)]))
    fill_weights(ours)
    torch.save(ours.state_dict(), weights)
    assert run("--to-hf", config, weights, "--output", tmp_path / "theirs") == 0
    theirs = load_theirs(tmp_path / "theirs")
    assert list(theirs.config.id2label.values()) == TINY_NAMES
    assert worst_difference(theirs, ours, random_images(96, 160)) < 1e-4
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "theirs")
    assert isinstance(processor, transformers.MaskFormerImageProcessor)

    assert run(tmp_path / "theirs", "--output", tmp_path / "ours") == 0
    back = load_ours(tmp_path / "ours").state_dict()
    state = ours.state_dict()
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value), name


def test_transformers_loads_half_precision_weights_as_float32(tmp_path):
    config, weights = write_tiny_model(tmp_path)
    half = {
        name: value.half() if value.is_floating_point() else value
        for name, value in read_checkpoint(weights)["model"].items()
    }
    write_weights(half, tmp_path / "half.safetensors", ["a", "b", "c", "d"])
    assert run("--to-hf", config, tmp_path / "half.safetensors", "--output", tmp_path / "out") == 0
    theirs = load_theirs(tmp_path / "out")
    assert theirs.dtype == torch.float32
    assert list(theirs.config.id2label.values()) == list("abcd")  # as in the checkpoint
    query = half["sem_seg_head.predictor.query_embed.weight"]
    assert torch.equal(theirs.model.transformer_module.queries_embedder.weight, query.float())


def test_the_dataset_determines_the_thing_classes(tmp_path):
    config = small_config("ResNet")
    config.id2label = {index: f"class {index}" for index in range(133)}
    model = transformers.MaskFormerForInstanceSegmentation(config)
    folder = save_theirs(model, tmp_path / "theirs")
    dataset = "coco_2017_val_panoptic"
    assert run(folder, "--output", tmp_path / "ours", "--dataset", dataset) == 0
    cfg = load_cfg(str(tmp_path / "ours" / "config.yaml"))
    assert tuple(cfg.DATASETS.TEST) == (dataset,)
    assert cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
    assert load_ours(tmp_path / "ours").thing_ids == frozenset(range(80))
    carried = find_pretrained(tmp_path / "ours" / "model.safetensors", device="cpu")
    assert carried.classes.thing_ids == list(range(80))
    assert carried.classes.names == list(config.id2label.values())  # the checkpoint's own
    assert carried.cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
    assert run(folder, "--output", tmp_path / "semantic") == 0
    carried = find_pretrained(tmp_path / "semantic" / "model.safetensors", device="cpu")
    assert carried.classes.thing_ids == [] and carried.cfg.DATASETS.TEST == ()
    cfg = load_cfg(str(tmp_path / "semantic" / "config.yaml"))
    assert not cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON and not cfg.DATASETS.TEST


def test_an_instance_dataset_turns_on_instances_only(tmp_path):
    config = small_config("Mask2Former, ResNet")
    config.id2label = {index: f"class {index}" for index in range(80)}
    folder = save_theirs(class_of(config)(config), tmp_path / "theirs")
    assert run(folder, "--output", tmp_path / "ours", "--dataset", "coco_2017_val") == 0
    found = find_pretrained(tmp_path / "ours" / "model.safetensors", device="cpu")
    assert found.classes.thing_ids == list(range(80))
    test = found.cfg.MODEL.MASK_FORMER.TEST
    assert (test.SEMANTIC_ON, test.PANOPTIC_ON, test.INSTANCE_ON) == (False, False, True)


def test_an_image_gives_the_same_labels_at_the_size_of_the_masks(tmp_path):
    """At other sizes, results differ: transformers upsamples class scores, we upsample masks."""
    config, weights = write_tiny_model(tmp_path)
    assert run("--to-hf", config, weights, "--output", tmp_path) == 0
    theirs = load_theirs(tmp_path)
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
    ours = load_trained_model(load_cfg(str(config), ["MODEL.WEIGHTS", str(weights)]))
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)  # not resized
    inputs = processor(images=image, return_tensors="pt")
    pixels = torch.from_numpy(image.transpose(2, 0, 1)).float()
    pixels = (pixels - ours.pixel_mean) / ours.pixel_std
    torch.testing.assert_close(inputs["pixel_values"][0], pixels, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        (expected,) = processor.post_process_semantic_segmentation(theirs(**inputs))
        outputs = ours.sem_seg_head(ours.backbone(pixels[None]))
    found = semantic_map(outputs["pred_logits"][0], outputs["pred_masks"][0])
    assert expected.unique().numel() > 2
    assert (found == expected).float().mean() > 0.99


# Mistakes


@pytest.fixture
def folder(tmp_path):
    return save_theirs(their_model("ResNet"), tmp_path / "theirs")


def fails(capsys, *arguments: object) -> str:
    """Run the command, and return its error, which must be one line."""
    capsys.readouterr()  # drop earlier output
    assert run(*arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("convert_hf_maskformer: ") and error.count("\n") == 1
    return error


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_missing_file_is_named(name, folder, tmp_path, capsys):
    (folder / name).unlink()
    error = fails(capsys, folder, "--output", tmp_path / "ours")
    assert name in error and str(folder) in error
    assert not (tmp_path / "ours").exists()


def test_a_broken_config_is_named(folder, tmp_path, capsys):
    (folder / "config.json").write_text("{")
    assert "config.json is not a JSON" in fails(capsys, folder, "--output", tmp_path / "ours")
    (folder / "config.json").write_text("[]")
    assert "config.json holds a list" in fails(capsys, folder, "--output", tmp_path / "ours")


def test_another_type_of_model_is_refused(folder, tmp_path, capsys):
    change_json(folder / "config.json", model_type="bert")
    error = fails(capsys, folder, "--output", tmp_path / "ours")
    assert f"{folder}: config.json: model_type is 'bert'" in error
    assert "expected 'maskformer' or 'mask2former'" in error


def test_weights_that_do_not_fit_the_config_are_refused(folder, tmp_path, capsys):
    change_json(folder / "config.json", mask_feature_size=32)
    error = fails(capsys, folder, "--output", tmp_path / "ours")
    assert "mask_features.bias has shape (24,), not (32,)" in error
    model = their_model("ResNet").model  # without the heads
    model.save_pretrained(folder)
    assert run(folder, "--output", tmp_path / "ours") == 1
    assert not (tmp_path / "ours").exists()


def test_weights_of_a_maskformer_with_a_config_of_a_mask2former_name_the_fix(tmp_path, capsys):
    kinds = {"mask2former": "Mask2Former, ResNet", "maskformer": "ResNet"}
    for name, kind in kinds.items():
        folder = save_theirs(their_model(kind), tmp_path / "theirs" / name)
        assert run(folder, "--output", tmp_path / name) == 0
    weights = tmp_path / "maskformer" / "model.safetensors"
    command = ["--to-hf", tmp_path / "mask2former" / "config.yaml", weights]
    error = fails(capsys, *command, "--output", tmp_path / "out")
    assert f"{weights} does not fit the model" in error
    assert "It is a checkpoint of a MaskFormer, and the config describes another model" in error
    assert "give the config that it was trained with, such as one in configs/" in error


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("no_object_weight", -1.0, "NO_OBJECT_WEIGHT is -1.0; expected 0 or more"),
        ("fpn_feature_size", 33, "does not fit maps of 33 channels"),
        ("mask_feature_size", -1, "MASK_DIM is -1; expected 1 or more"),
    ],
)
def test_impossible_settings_are_refused_with_the_folder_and_the_key(
    folder, tmp_path, capsys, key, value, reason
):
    change_json(folder / "config.json", **{key: value})
    error = fails(capsys, folder, "--output", tmp_path / "ours")
    assert str(folder) in error and reason in error


def test_a_file_of_class_names_that_never_ends_is_refused(folder, tmp_path, capsys):
    os.mkfifo(tmp_path / "names.txt")
    settings = tmp_path / "ours"
    assert run(folder, "--output", settings) == 0
    files = (settings / "config.yaml", settings / "model.safetensors")
    error = fails(
        capsys, "--to-hf", *files, "--output", tmp_path, "--class-names", tmp_path / "names.txt"
    )
    assert "names.txt was refused: it is a named pipe" in error


def test_a_dataset_of_other_classes_and_an_unknown_one_are_refused(folder, tmp_path, capsys):
    error = fails(capsys, folder, "--output", tmp_path, "--dataset", "ade20k_sem_seg_val")
    assert "ade20k_sem_seg_val has 150 classes, the checkpoint 5" in error
    error = fails(capsys, folder, "--output", tmp_path, "--dataset", "ade21k")
    assert "There is no dataset 'ade21k'" in error


def test_a_model_that_transformers_does_not_support_is_refused_before_weights_are_read(
    tmp_path, capsys
):
    config, weights = write_tiny_model(tmp_path)
    change_yaml(config, "SEM_SEG_HEAD", PIXEL_DECODER_NAME="TransformerEncoderPixelDecoder")
    error = fails(capsys, "--to-hf", config, weights, "--output", tmp_path / "theirs")
    assert "without a transformer encoder" in error
    assert not (tmp_path / "theirs").exists()


def test_class_names_can_be_given_if_neither_config_nor_weights_have_them(tmp_path, capsys):
    config, weights = write_tiny_model(tmp_path)
    settings = yaml.safe_load(config.read_text())
    assert settings.pop("DATASETS")["TRAIN"] == [DATASET]
    config.write_text(yaml.safe_dump(settings))
    error = fails(capsys, "--to-hf", config, weights, "--output", tmp_path / "theirs")
    assert "--class-names" in error and "4 classes" in error
    names = tmp_path / "names.txt"
    names.write_text("Himmel\nStraße\nAuto\nRad\n", encoding="utf-8")
    command = ["--to-hf", config, weights, "--output", tmp_path / "theirs"]
    assert run(*command, "--class-names", names) == 0
    assert load_theirs(tmp_path / "theirs").config.label2id["Straße"] == 1


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_yaml(path: Path, group: str, **values: object) -> None:
    settings = yaml.safe_load(path.read_text())
    settings["MODEL"][group].update(values)
    path.write_text(yaml.safe_dump(settings))
