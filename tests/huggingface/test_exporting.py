"""Models exported to transformers give the same logits; others are refused with the reason."""

import gzip
import json

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from safetensors.torch import save_file

from mask_former.config.loading import load_cfg
from mask_former.huggingface import (
    read_huggingface_folder,
    to_huggingface_config,
    to_huggingface_names,
    to_huggingface_processor,
)
from mask_former.huggingface.tables import get
from tests.helpers.golden_cases import GOLDEN, ROOT, WIDE, fill_weights
from tests.helpers.huggingface_models import load_theirs, random_images, worst_difference
from tests.helpers.tiny_model import tiny_settings
from tests.helpers.tiny_networks import MASK2FORMER, tiny_cfg

CONFIGS = ROOT / "configs"
REFUSED = {
    "*/per_pixel*": "no per-pixel models",
    "*/*R101c*": "DeepLab's stem",
    "*panoptic*/*panoptic_R*": "without a transformer encoder",
    "camvid/maskformer*": "weights of other backbones",
    "shapes/*": "weights of other backbones",
}


def names_of(cfg):
    return [f"class {index}" for index in range(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES)]


def write_theirs(cfg, model, folder):
    save_file(
        to_huggingface_names(model.state_dict()), folder / "model.safetensors", {"format": "pt"}
    )
    (folder / "config.json").write_text(json.dumps(to_huggingface_config(cfg, names_of(cfg))))
    (folder / "preprocessor_config.json").write_text(json.dumps(to_huggingface_processor(cfg)))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    "config",
    [
        "ade20k-150/swin/maskformer_swin_tiny_bs16_160k",
        "coco-panoptic/swin/maskformer_panoptic_swin_tiny_bs64_554k",
        "ade20k-150/maskformer_R50_bs16_160k",
        "mask2former/coco/instance-segmentation/swin/maskformer2_swin_tiny_bs16_50ep",
        "mask2former/coco/panoptic-segmentation/maskformer2_R50_bs16_50ep",
    ],
)
def test_a_published_model_gives_the_same_logits_and_survives_a_round_trip(config, tmp_path):
    cfg = load_cfg(str(CONFIGS / f"{config}.yaml"), ["MODEL.DEVICE", "cpu"])
    ours = build_model(cfg).eval()
    fill_weights(ours, wide=WIDE if config.startswith("mask2former/") else ())
    theirs = load_theirs(write_theirs(cfg, ours, tmp_path))
    assert worst_difference(theirs, ours, random_images(128, 96)) < 1e-4
    assert theirs.config.id2label == dict(enumerate(names_of(cfg)))

    back = read_huggingface_folder(tmp_path)
    assert back.class_names == names_of(cfg)
    unsaved = ("num_batches_tracked", "relative_position_index")
    state = {k: v for k, v in ours.state_dict().items() if not k.endswith(unsaved)}
    assert {k for k in back.weights if not k.endswith(unsaved)} == set(state)
    for name, value in state.items():
        assert torch.equal(back.weights[name], value), name
    for key, value in flat(back.settings):
        if "TEST." not in key and key != "MODEL.RESNETS.NORM":
            assert value == get(cfg, key), key


def flat(tree, prefix=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def test_16_published_configs_are_converted():
    refused = {file for pattern in REFUSED for file in CONFIGS.glob(f"{pattern}.yaml")}
    facts = json.loads(gzip.decompress((GOLDEN / "published_configs.json.gz").read_bytes()))
    others = {CONFIGS / path for path in facts["configs"]} - refused
    assert len(others) == 16
    for file in others:
        cfg = load_cfg(str(file))
        assert to_huggingface_config(cfg, names_of(cfg))["model_type"] == "maskformer"


def test_published_configs_of_mask2former_are_converted():
    files = sorted((CONFIGS / "mask2former").rglob("maskformer*.yaml"))[::6]
    assert {file.parents[file.parent.name == "swin"].name for file in files} == {
        f"{task}-segmentation" for task in ("instance", "panoptic", "semantic")
    }
    for file in files:
        cfg = load_cfg(str(file))
        assert to_huggingface_config(cfg, names_of(cfg))["model_type"] == "mask2former"
        kind = to_huggingface_processor(cfg)["image_processor_type"]
        assert kind == "Mask2FormerImageProcessor"


@pytest.mark.parametrize("pattern", REFUSED)
def test_configs_that_transformers_does_not_support_are_refused_with_the_reason(pattern):
    files = [file for file in CONFIGS.glob(f"{pattern}.yaml") if "Base" not in file.name]
    assert files
    for file in files:
        cfg = load_cfg(str(file))
        with pytest.raises(ValueError) as error:
            to_huggingface_config(cfg, names_of(cfg))
        name = "Mask2Former" if file.name.startswith("mask2former") else "MaskFormer"
        assert f"transformers' {name} does not support" in str(error.value)
        assert REFUSED[pattern] in str(error.value), file


@pytest.mark.parametrize("backbone", ["D2SwinTransformer", "build_resnet_backbone"])
@pytest.mark.parametrize(
    "key, value",
    [
        ("MODEL.MASK_FORMER.PRE_NORM", True),
        ("MODEL.MASK_FORMER.ENC_LAYERS", 2),
        ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "pixel_embedding"),
        ("MODEL.SEM_SEG_HEAD.NORM", ""),
        ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3", "res4", "res5"]),
        ("INPUT.FORMAT", "BGR"),
        ("MODEL.SWIN.APE", True),
        ("MODEL.SWIN.PATCH_NORM", False),
        ("MODEL.SWIN.QK_SCALE", 0.1),
        ("MODEL.SWIN.OUT_FEATURES", ["res5"]),
        ("MODEL.RESNETS.NORM", "GN"),
        ("MODEL.RESNETS.NUM_GROUPS", 32),
        ("MODEL.RESNETS.RES5_DILATION", 2),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", 32),
    ],
)
def test_unsupported_settings_are_refused_if_the_model_uses_them(cfg, backbone, key, value):
    cfg.merge_from_other_cfg(CfgNode(tiny_settings()))
    cfg.MODEL.BACKBONE.NAME = backbone
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    to_huggingface_config(cfg, names_of(cfg))
    cfg.merge_from_list([key, value])
    other = {"D2SwinTransformer": "RESNETS", "build_resnet_backbone": "SWIN"}[backbone]
    if f".{other}." in key:
        to_huggingface_config(cfg, names_of(cfg))
        return
    with pytest.raises(ValueError) as error:
        to_huggingface_config(cfg, names_of(cfg))
    assert key.rpartition(".")[2] in str(error.value)


@pytest.mark.parametrize(
    "key, value, reason",
    [
        ("MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "BasePixelDecoder", "deformable attention"),
        ("MODEL.SEM_SEG_HEAD.COMMON_STRIDE", 8, "starts at stride 4"),
        ("MODEL.SEM_SEG_HEAD.NORM", "", "group norms"),
        (
            "MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES",
            ["res4", "res5"],
            "three coarse maps",
        ),
        ("MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "res5", "three maps of the pixel decoder"),
        ("MODEL.SWIN.PATCH_SIZE", 2, "starts at stride 4"),
        ("MODEL.SWIN.APE", True, "not converted"),
        ("INPUT.FORMAT", "BGR", "outputs RGB"),
    ],
)
def test_settings_that_transformers_mask2former_lacks_are_refused(key, value, reason):
    cfg = tiny_cfg("swin", [*MASK2FORMER, "INPUT.FORMAT", "RGB"])
    to_huggingface_config(cfg, names_of(cfg))
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=rf"{key} is .*transformers' Mask2Former .*{reason}"):
        to_huggingface_config(cfg, names_of(cfg))


def test_a_projection_between_equal_widths_is_refused(cfg):
    cfg.merge_from_other_cfg(CfgNode(tiny_settings()))
    cfg.MODEL.MASK_FORMER.ENFORCE_INPUT_PROJ = True  # 64 to 16 is projected anyway
    to_huggingface_config(cfg, names_of(cfg))
    cfg.MODEL.MASK_FORMER.HIDDEN_DIM = 64
    with pytest.raises(ValueError, match="has a projection only if the two differ"):
        to_huggingface_config(cfg, names_of(cfg))


def test_too_few_class_names_are_an_error(cfg):
    cfg.merge_from_other_cfg(CfgNode(tiny_settings()))
    with pytest.raises(ValueError, match=r"There are 3 class names, but .*NUM_CLASSES is 4"):
        to_huggingface_config(cfg, ["sky", "road", "car"])


def test_the_size_divisor_comes_from_the_backbone_and_batch_norms_are_accepted(cfg):
    cfg.merge_from_other_cfg(CfgNode(tiny_settings()))
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.MASK_FORMER.SIZE_DIVISIBILITY = -1
    assert to_huggingface_processor(cfg)["size_divisor"] == 32
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    assert to_huggingface_processor(cfg)["size_divisor"] == 0
    for norm in ("BN", "SyncBN"):
        cfg.MODEL.RESNETS.NORM = norm
        to_huggingface_config(cfg, names_of(cfg))
    cfg.INPUT.MIN_SIZE_TEST = 0
    assert to_huggingface_processor(cfg)["do_resize"] is False
