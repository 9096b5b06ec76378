"""tools/benchmark_mappers.py: training mappers compared with a plain one."""

import re

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from mask_former.config.loading import load_cfg
from mask_former.registries import DATASET_MAPPER_REGISTRY
from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

tool = load_script("tools/benchmark_mappers.py")

CONFIGS = {
    "semantic": "ade20k-150/maskformer_R50_bs16_160k.yaml",
    "16 bit": "ade20k-full-847/maskformer_R50_bs16_200k.yaml",
    "panoptic": "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k.yaml",
    "detr": "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml",
}
SMALL = ["INPUT.MIN_SIZE_TRAIN", "[60]", "INPUT.COLOR_AUG_SSD", "False"]
CROP = ["INPUT.CROP.SIZE", "[48, 48]", "INPUT.SIZE_DIVISIBILITY", "56"]


@pytest.mark.parametrize("name", CONFIGS)
def test_the_plain_mapper_makes_the_same_examples(name, tmp_path):
    config = ROOT / "configs" / CONFIGS[name]
    cfg = load_cfg(str(config), [*SMALL, *([] if name == "detr" else CROP)])
    ours = DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(cfg, True)
    plain = tool.plain_mapper(cfg)
    for seed, record in enumerate(tool.write_synthetic_data(tmp_path, 6, (60, 80), cfg)):
        np.random.seed(seed)
        one = ours(record)
        np.random.seed(seed)
        two = plain(record)
        assert one["instances"].gt_classes.tolist() == two["instances"].gt_classes.tolist()
        # resizing only the crop window equals resizing before the crop, up to rounding
        assert (one["image"].int() - two["image"].int()).abs().max() <= 1
        # detectron2 rounds nearest neighbours differently for 64-bit and for 8-bit maps
        masks, expected = (example["instances"].gt_masks for example in (one, two))
        assert masks.shape == expected.shape and (masks == expected).float().mean() > 0.97
        if name != "detr":
            assert torch.equal(one["sem_seg"] == 0, two["sem_seg"] == 0) or name != "semantic"


def test_the_plain_augmentations_are_detectron2s():
    cfg = load_cfg(str(ROOT / "configs" / CONFIGS["semantic"]), [])
    steps = tool.plain_augmentations(cfg, 255)
    assert isinstance(steps[0], T.ResizeShortestEdge) and isinstance(steps[-1], T.RandomFlip)
    assert len(steps) == 4


def test_a_config_is_timed(capsys):
    config = ROOT / "configs" / CONFIGS["semantic"]
    options = ["--images", "2", "--rounds", "1", "--size", "60", "80", *SMALL, *CROP]
    assert tool.main(["--config-file", str(config), *options]) == 0
    head, figures, ratio = capsys.readouterr().out.splitlines()
    assert head.endswith("CPU milliseconds per image, median of 2")
    assert re.fullmatch(r"  ours [\d.]+, plain [\d.]+", figures)
    assert re.fullmatch(r"  [\d.]+ times as fast", ratio)


def test_a_mistake_is_an_error_of_one_line(capsys):
    assert tool.main(["--config-file", "no.yaml"]) == 1
    assert "no.yaml" in capsys.readouterr().err
