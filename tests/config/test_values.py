"""Values that no model can be built from, or that mean nothing, are refused by their key."""

from __future__ import annotations

import pytest

from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.validation import validate

RESNET = {"MODEL.BACKBONE.NAME": "build_resnet_backbone"}
CROP = {"INPUT.CROP.ENABLED": True}
BASIC = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}


def config(**settings):
    cfg = get_mask_former_cfg()
    own = {"MODEL.META_ARCHITECTURE": "MaskFormer", "MODEL.SEM_SEG_HEAD.NAME": "MaskFormerHead"}
    for key, value in {**own, **settings}.items():
        cfg.merge_from_list([key, value])
    return cfg


@pytest.mark.parametrize(
    ("key", "value", "others"),
    [
        ("MODEL.RESNETS.DEPTH", 51, {}),
        ("MODEL.RESNETS.NORM", "XX", {}),
        ("MODEL.RESNETS.NORM", "GN", {"MODEL.RESNETS.STEM_OUT_CHANNELS": 48}),
        ("MODEL.RESNETS.NUM_GROUPS", 0, {}),
        ("MODEL.RESNETS.NUM_GROUPS", 2, BASIC),
        ("MODEL.RESNETS.WIDTH_PER_GROUP", 0, {}),
        ("WIDTH_PER_GROUP", 64, {"MODEL.RESNETS.NUM_GROUPS": 65_536}),
        ("MODEL.RESNETS.STEM_OUT_CHANNELS", -1, {}),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 10**9, {}),
        ("MODEL.RESNETS.RES2_OUT_CHANNELS", 256, {"MODEL.RESNETS.DEPTH": 34}),
        ("MODEL.RESNETS.RES5_DILATION", 3, {}),
        ("MODEL.RESNETS.RES5_DILATION", 2, BASIC),
        ("MODEL.RESNETS.OUT_FEATURES", ["res6"], {}),
        ("MODEL.RESNETS.OUT_FEATURES", [], {}),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False], {}),
        ("MODEL.SWIN.OUT_FEATURES", [], {}),
        ("MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True], BASIC),
        ("MODEL.SWIN.DEPTHS", [1] * 5, {"MODEL.SWIN.NUM_HEADS": [1] * 5}),
        ("MODEL.SWIN.DEPTHS", [10_000, 1, 1, 1], {}),
        ("MODEL.SWIN.NUM_HEADS", [5, 6, 12, 24], {}),
        ("MODEL.SWIN.NUM_HEADS", [0, 6, 12, 24], {}),
        ("MODEL.SWIN.PATCH_SIZE", 0, {}),
        ("MODEL.SWIN.PRETRAIN_IMG_SIZE", -1, {}),
        ("MODEL.SWIN.WINDOW_SIZE", 10**6, {}),
        ("MODEL.SWIN.MLP_RATIO", 0.0, {}),
        ("MODEL.SWIN.DROP_RATE", 2.0, {}),
        ("MODEL.SWIN.DROP_PATH_RATE", -0.1, {}),
        ("MODEL.TIMM.DROP_PATH_RATE", 7.0, {}),
        ("MODEL.MASK_FORMER.DROPOUT", 1.5, {}),
        ("MODEL.MASK_FORMER.LOSSES", ["masks", "labels", "masks"], {}),
        ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res3", "res3"], {}),
        ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 2**20, {"MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 1e3}),
        ("MODEL.PIXEL_MEAN", [], {"MODEL.PIXEL_STD": []}),
        ("INPUT.IMAGE_SIZE", 10**6, {}),
        ("INPUT.MAX_SCALE", 1e6, {}),
        ("INPUT.MIN_SIZE_TRAIN", (), {}),
        ("INPUT.MIN_SIZE_TRAIN", (-5,), {}),
        ("INPUT.MIN_SIZE_TRAIN", (10**6,), {}),
        ("INPUT.CROP.SIZE", [0, 5], {**CROP, "INPUT.CROP.TYPE": "absolute"}),
        ("INPUT.CROP.SIZE", [1.5, 5], {**CROP, "INPUT.CROP.TYPE": "absolute"}),
        ("INPUT.CROP.SIZE", [5], {**CROP, "INPUT.CROP.TYPE": "absolute"}),
        ("INPUT.CROP.SIZE", [2.0, 0.5], {**CROP, "INPUT.CROP.TYPE": "relative"}),
        ("INPUT.CROP.SIZE", [0.0, 0.5], {**CROP, "INPUT.CROP.TYPE": "relative_range"}),
    ],
)
def test_an_impossible_value_is_refused_by_its_key(key, value, others):
    name = key if "." in key else f"MODEL.RESNETS.{key}"
    with pytest.raises(ValueError, match=rf"{key}\b.*(expected|does not|must|cannot|remove)"):
        validate(config(**RESNET, **others, **{name: value}))


@pytest.mark.parametrize(
    "settings",
    [
        RESNET,
        {**RESNET, **BASIC},
        {**RESNET, "MODEL.RESNETS.NORM": "GN"},
        {**RESNET, "MODEL.RESNETS.NUM_GROUPS": 32, "MODEL.RESNETS.WIDTH_PER_GROUP": 8},
        {**RESNET, "MODEL.RESNETS.RES5_DILATION": 2},
        {"MODEL.RESNETS.DEPTH": 51, "MODEL.BACKBONE.NAME": "D2SwinTransformer"},
        {**CROP, "INPUT.CROP.TYPE": "relative_range", "INPUT.CROP.SIZE": [1.0, 0.1]},
        {"INPUT.CROP.SIZE": [0, 0]},
        {"DATASETS.TRAIN": ("a", "a")},
    ],
    ids=str,
)
def test_unusual_values_that_mean_something_are_accepted(settings):
    validate(config(**settings))
