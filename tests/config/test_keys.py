"""Keys that the project adds, and the mistakes that ``validate`` finds before anything is built.

The defaults of the published keys are checked in test_published_configs.py.
"""

from types import SimpleNamespace

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from detectron2.projects.deeplab import add_deeplab_config

from mask_former.config import keys as config
from mask_former.config.keys import add_mask_former_config, get_mask_former_cfg
from mask_former.config.validation import validate
from mask_former.registries import (
    CRITERION_REGISTRY,
    DATASET_MAPPER_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
)

# Keys besides the published ones, with the defaults that keep the published behaviour.
ADDED_KEYS = {
    "LOGGERS": ["json", "tensorboard"],
    "INPUT.IMAGE_SIZE": 1024,
    "INPUT.LSJ_RULE": "detectron2",
    "INPUT.MAX_SCALE": 2.0,
    "INPUT.MAX_TRIES": 1,
    "INPUT.MIN_MASK_AREA": 0,
    "INPUT.MIN_SCALE": 0.1,
    "INPUT.PAD_VALUE": 128,
    "MODEL.EMA.ENABLED": False,
    "MODEL.FREEZE": [],
    "MODEL.MASK_FORMER.CLASS_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.FINETUNE": False,
    "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM": "",
    "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": 0.75,
    "MODEL.MASK_FORMER.LOSSES": ["labels", "masks"],
    "MODEL.MASK_FORMER.MASK_IGNORE": False,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 3.0,
    "MODEL.MASK_FORMER.TEST.INSTANCE_ON": False,
    "MODEL.MASK_FORMER.TEST.SEGMENT_WITHIN_MASK": False,
    "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": True,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 0,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": "TransformerPredictor",
    "SOLVER.LR_MULTIPLIERS": [],
    "TEST.BEST_METRIC": "",
    "TEST.SLIDING_WINDOW.SIZE": 0,
    "TEST.SLIDING_WINDOW.STRIDE": 0,
    "TEST.VAL_LOSS": False,
}

REGISTERED = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME": TRANSFORMER_DECODER_REGISTRY,
    "MODEL.MASK_FORMER.CRITERION_NAME": CRITERION_REGISTRY,
    "MODEL.MASK_FORMER.MATCHER.NAME": MATCHER_REGISTRY,
    "INPUT.DATASET_MAPPER_NAME": DATASET_MAPPER_REGISTRY,
}


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.fixture
def valid(cfg):
    """A config that ``validate`` accepts."""
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "MaskFormerHead"
    validate(cfg)
    return cfg


def message_of(cfg, error):
    with pytest.raises(error) as caught:
        validate(cfg)
    return str(caught.value)


def test_added_keys_keep_the_published_behaviour_by_default():
    cfg = get_mask_former_cfg()
    assert {key: value_of(cfg, key) for key in ADDED_KEYS} == ADDED_KEYS


def test_the_config_combines_detectron2s_deeplabs_and_mask_formers_keys():
    cfg = get_cfg()
    add_deeplab_config(cfg)
    add_mask_former_config(cfg)
    assert cfg == get_mask_former_cfg()


def test_two_configs_share_no_values():
    one, two = get_mask_former_cfg(), get_mask_former_cfg()
    one.MODEL.SWIN.DEPTHS.append(5)
    one.MODEL.MASK_FORMER.LOSSES.append("another")
    one.MODEL.MASK_FORMER.TEST.PANOPTIC_ON = True
    assert two == get_mask_former_cfg()


def test_a_plugin_can_add_keys(monkeypatch):
    def add_config(cfg):
        cfg.MODEL.PLUGIN = CfgNode({"WIDTH": 3})

    found = (SimpleNamespace(), SimpleNamespace(add_config=add_config))
    monkeypatch.setattr(config, "plugins", lambda: found)
    assert get_mask_former_cfg().MODEL.PLUGIN.WIDTH == 3


@pytest.mark.parametrize("key", REGISTERED)
def test_the_error_for_an_unknown_name_lists_the_known_ones(valid, key):
    valid.merge_from_list([key, "Unheard"])
    text = message_of(valid, KeyError)
    assert f"{key} is 'Unheard', which is not registered" in text
    assert [name for name, _ in REGISTERED[key] if repr(name) not in text] == []


def test_the_error_for_an_unknown_loss_lists_the_known_ones(valid):
    valid.MODEL.MASK_FORMER.LOSSES = ["labels", "unheard"]
    text = message_of(valid, KeyError)
    assert "MODEL.MASK_FORMER.LOSSES is 'unheard', which is not registered" in text
    assert [name for name, _ in LOSS_REGISTRY if repr(name) not in text] == []


def set_crop(cfg, kind, size, side, enabled=True):
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = enabled, kind, size
    cfg.INPUT.SIZE_DIVISIBILITY = side


@pytest.mark.parametrize("size", [[512, 640], [640, 512]])
def test_the_error_for_a_crop_larger_than_its_padded_side_names_the_required_side(valid, size):
    set_crop(valid, "absolute", size, 512)
    text = message_of(valid, ValueError)
    assert f"INPUT.CROP.SIZE is {size}" in text
    assert "INPUT.SIZE_DIVISIBILITY = 512" in text
    assert "set INPUT.SIZE_DIVISIBILITY to 640" in text


@pytest.mark.parametrize(
    ("kind", "size", "side", "enabled"),
    [
        ("absolute", [512, 512], 512, True),
        ("absolute", [512, 512], -1, True),  # not padded at all
        ("absolute", [640, 640], 512, False),
        ("relative", [0.9, 0.9], 512, True),
    ],
)
def test_other_crops_are_accepted(valid, kind, size, side, enabled):
    set_crop(valid, kind, size, side, enabled)
    validate(valid)


@pytest.mark.parametrize("key", ["OBJECT_MASK_THRESHOLD", "OVERLAP_THRESHOLD"])
def test_a_threshold_lies_between_0_and_1(valid, key):
    for value in (0.0, 0.5, 1.0):
        valid.MODEL.MASK_FORMER.TEST[key] = value
        validate(valid)
    for value in (-0.1, 1.5, 80.0, float("nan")):
        valid.MODEL.MASK_FORMER.TEST[key] = value
        text = message_of(valid, ValueError)
        assert text == f"MODEL.MASK_FORMER.TEST.{key} is {value}; it must lie in [0, 1]."


def test_point_sampling_settings_are_checked_if_sampling_is_on(valid):
    valid.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 0.5
    validate(valid)
    valid.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 12544
    text = "MODEL.MASK_FORMER.OVERSAMPLE_RATIO is 0.5, expected 1 or more."
    assert message_of(valid, ValueError) == text
    valid.MODEL.MASK_FORMER.OVERSAMPLE_RATIO = 3.0
    validate(valid)


def test_validating_changes_nothing(valid):
    before = valid.clone()
    validate(valid)
    valid.freeze()
    validate(valid)
    assert valid == before


def test_finetune_classes_from_requires_finetune(valid):
    valid.MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM = "somewhere_train"
    assert "'somewhere_train', but MODEL.MASK_FORMER.FINETUNE is False" in message_of(
        valid, ValueError
    )
    valid.MODEL.MASK_FORMER.FINETUNE = True
    validate(valid)
