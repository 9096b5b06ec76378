"""Checkpoints of transformers give the same logits here, and all their settings are read."""

import copy
import json

import numpy as np
import pytest
import torch

from mask_former.config.loading import load_cfg
from mask_former.huggingface import read_huggingface_folder, settings_from_huggingface, tables
from mask_former.huggingface.families import FAMILIES
from mask_former.huggingface.mask2former import MASK2FORMER
from tests.helpers.huggingface_models import (
    NAMES,
    SMALL,
    model_of,
    random_images,
    save_theirs,
    small_config,
    their_model,
    transformers,
    worst_difference,
)
from tests.helpers.paths import ROOT

MIXED = ("ResNet", "Mask2Former, ResNet")


@pytest.mark.parametrize("kind", SMALL)
def test_a_converted_model_gives_the_same_logits(kind, tmp_path):
    theirs = their_model(kind)
    checkpoint = read_huggingface_folder(save_theirs(theirs, tmp_path))
    assert checkpoint.class_names == NAMES
    ours = model_of(checkpoint)
    for size in ((64, 96), (160, 32), (75, 101)):  # the last is not a multiple of any stride
        assert worst_difference(theirs, ours, random_images(*size)) < 1e-4


def test_a_pickled_file_is_read_but_one_with_code_is_refused(tmp_path):
    theirs = their_model("ResNet")
    folder = save_theirs(theirs, tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    ours = model_of(read_huggingface_folder(folder))
    assert worst_difference(theirs, ours, random_images(64, 64)) < 1e-4
    torch.save({"model": print}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin was refused: loading it would run"):
        read_huggingface_folder(folder)


def complete_config(family, backbone):
    """Return all settings of a config of transformers, with their defaults."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    backbone = getattr(transformers, backbone)(out_features=stages)
    config = getattr(transformers, f"{family.name}Config")(backbone_config=backbone)
    return json.loads(config.to_json_string(use_diff=False))


BACKBONES = {"SwinConfig": tables.SWIN_VALUES, "ResNetConfig": tables.RESNET_VALUES}
of_each_family = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)


@pytest.mark.parametrize("backbone", BACKBONES)
@of_each_family
def test_missing_settings_have_the_defaults_of_transformers(family, backbone):
    values = complete_config(family, backbone)
    for _, theirs, default in family.values + BACKBONES[backbone]:
        assert tables.get(values, theirs) == default, theirs


@pytest.mark.parametrize("backbone", BACKBONES)
@of_each_family
def test_a_minimal_config_has_the_settings_of_the_complete_one(family, backbone):
    kind = {"model_type": getattr(transformers, backbone).model_type}
    minimal = {"model_type": family.model_type, "backbone_config": kind}
    processor = getattr(transformers, f"{family.name}ImageProcessor")().to_dict()
    complete = settings_from_huggingface(complete_config(family, backbone), processor)
    assert settings_from_huggingface(minimal, {}) == complete


def test_a_mask2former_gets_the_losses_and_the_panoptic_rule_of_the_published_configs():
    published = load_cfg(
        str(ROOT / "configs/mask2former/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep.yaml")
    )
    config = {**complete_config(MASK2FORMER, "ResNetConfig"), "num_labels": 133}
    del config["id2label"]
    found = settings_from_huggingface(config, {})["MODEL"]
    for group in ("MASK_FORMER", "SEM_SEG_HEAD"):
        for key, value in found[group].items():
            expected = published.MODEL[group][key]
            assert key == "TEST" or value == expected, key
    for key, value in found["MASK_FORMER"]["TEST"].items():
        assert value == published.MODEL.MASK_FORMER.TEST[key], key


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("model_type", "bert", "expected 'maskformer' or 'mask2former'"),
        ("backbone_config.model_type", "timm_backbone", "'swin' or 'maskformer-swin' or 'resnet'"),
        ("backbone_config.num_channels", 4, "images have 3 channels"),
        ("backbone_config.out_features", ["stage3", "stage4"], "all four maps"),
        ("backbone_config.use_absolute_embeddings", True, "not converted"),
        ("backbone_config.layer_norm_eps", 1e-6, "1e-06"),
        ("backbone_config.hidden_act", "relu", "gelu"),
        ("backbone_config.depths", [2, 2, 2], "four stages"),
        ("backbone_config.image_size", [224, 448], "one number"),
        ("decoder_config.model_type", "bart", "DETR"),
        ("decoder_config.activation_function", "gelu", "relu"),
        ("id2label", {"0": "sky", "2": "sea"}, "2 classes with ids 0 … 2"),
    ],
)
def test_unsupported_swin_settings_are_refused(key, value, expected):
    refuse("Swin", key, value, expected)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("backbone_config.patch_size", 2, "starts at stride 4"),
        ("backbone_config.use_absolute_embeddings", True, "not converted"),
        ("activation_function", "gelu", "relu"),
        ("encoder_feedforward_dim", 2048, "expected 1024"),
        ("pre_norm", True, "after each block"),
        ("common_stride", 8, "starts at stride 4"),
        ("feature_strides", [2, 4, 8, 16], "starts at stride 4"),
        ("num_queries", "many", "expected int"),
        ("backbone_config.depths", [2, 2, 2], "this Mask2Former has four stages"),
    ],
)
def test_unsupported_mask2former_settings_are_refused(key, value, expected):
    refuse("Mask2Former, Swin", key, value, expected)


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("backbone_config.downsample_in_first_stage", True, "detectron2's ResNet does not"),
        ("backbone_config.hidden_act", "gelu", "relu"),
        ("backbone_config.depths", [1, 1, 1, 1], "depths [1, 1, 1, 1]"),
        ("backbone_config.hidden_sizes", [32, 64, 96, 128], "twice as wide"),
        ("backbone_config.layer_type", "basic", "64 channels first"),
    ],
)
def test_unsupported_resnet_settings_are_refused(key, value, expected):
    refuse("ResNet", key, value, expected)


def refuse(kind, key, value, expected):
    config = json.loads(small_config(kind).to_json_string(use_diff=False))
    settings_from_huggingface(copy.deepcopy(config), {})
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    with pytest.raises(ValueError) as error:
        settings_from_huggingface(config, {})
    assert f"config.json: {key}" in str(error.value) or "backbone_config" in str(error.value)
    assert expected in str(error.value)


@pytest.mark.parametrize("config, weights", [MIXED, MIXED[::-1]])
def test_weights_of_another_model_than_that_of_config_json_are_refused(config, weights, tmp_path):
    folder = save_theirs(their_model(weights), tmp_path)
    small_config(config).save_pretrained(folder)
    names = [SMALL[kind][0] for kind in (weights, config)]
    expected = r"model\.safetensors: .*names of a {}, but config\.json describes a {}: put the "
    with pytest.raises(ValueError, match=expected.format(*names)):
        read_huggingface_folder(folder)


# Images


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 1.0, 2.0]},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "image_mean": [100.0, 110.0, 120.0], "image_std": [50.0, 60.0, 70.0]},
        {"do_normalize": False},
    ],
)
def test_images_are_normalised_like_transformers_does(processor):
    image = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    theirs = transformers.MaskFormerImageProcessor(do_resize=False, **processor)
    expected = theirs(images=image, return_tensors="pt")["pixel_values"][0]
    config = {"model_type": "maskformer", "backbone_config": {"model_type": "swin"}}
    model = settings_from_huggingface(config, theirs.to_dict())["MODEL"]
    mean, std = (torch.tensor(model[f"PIXEL_{key}"])[:, None, None] for key in ("MEAN", "STD"))
    found = (torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)) - mean) / std
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "processor, shortest, longest, divisibility",
    [
        ({}, 800, 1333, 32),
        ({"size": {"shortest_edge": 640, "longest_edge": 2560}, "size_divisor": 0}, 640, 2560, 0),
        ({"size": 640, "max_size": 2560, "size_divisibility": 64}, 640, 2560, 64),
        ({"do_resize": False}, 0, 1333, 32),
    ],
    ids=["defaults", "current format", "format of 2022", "no resize"],
)
def test_image_sizes_are_read(processor, shortest, longest, divisibility):
    config = {"model_type": "maskformer", "backbone_config": {"model_type": "swin"}}
    settings = settings_from_huggingface(config, processor)
    found = settings["INPUT"]["MIN_SIZE_TEST"], settings["INPUT"]["MAX_SIZE_TEST"]
    assert found == (shortest, longest)
    assert settings["MODEL"]["MASK_FORMER"]["SIZE_DIVISIBILITY"] == divisibility


def test_a_size_that_would_change_the_aspect_ratio_is_refused():
    config = {"model_type": "maskformer", "backbone_config": {"model_type": "swin"}}
    with pytest.raises(ValueError, match="needs shortest_edge and longest_edge"):
        settings_from_huggingface(config, {"size": {"height": 512, "width": 512}})


def theirs_of(backbone="swin"):
    return {"model_type": "maskformer", "backbone_config": {"model_type": backbone}}


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"id2label": ["a"]}, "id2label is "),
        ({"id2label": {"x": "a"}}, "id2label is "),
        ({"num_labels": "z"}, "num_labels is z; expected 1"),
        ({"num_labels": 10**10}, "num_labels is 10000000000; expected 1"),
        ({"num_labels": True}, "num_labels is True; expected 1"),
        ({"fpn_feature_size": "x"}, "fpn_feature_size is x; expected int"),
        ({"decoder_config": {"model_type": "detr", "dropout": []}}, "dropout is .*one number"),
        ({"mask_weight": {}}, "mask_weight is .*expected float"),
    ],
)
def test_a_value_of_another_type_is_refused_in_words(change, reason):
    with pytest.raises(ValueError, match=rf"config\.json: .*{reason}"):
        settings_from_huggingface(theirs_of() | change, {})


@pytest.mark.parametrize(
    "processor",
    [{"rescale_factor": 0}, {"rescale_factor": "x"}, {"size": [1]}, {"image_mean": 5}],
)
def test_a_processor_with_values_of_other_types_is_refused_with_its_folder(processor, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(theirs_of()))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    with pytest.raises(ValueError, match=rf"{tmp_path}: .*preprocessor_config\.json"):
        read_huggingface_folder(tmp_path)
