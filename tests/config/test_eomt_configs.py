"""The configs under configs/eomt/, against the published facts in tests/golden/."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import yaml
from detectron2.config import CfgNode

from mask_former.checkpoint.inference_data import inference_settings
from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.loading import cfg_from_settings
from mask_former.config.validation import validate
from mask_former.modeling.heads.eomt_annealing import Annealing
from tests.helpers.paths import GOLDEN, ROOT

FOLDER = ROOT / "configs" / "eomt"
FACTS = json.loads(gzip.decompress((GOLDEN / "eomt_configs.json.gz").read_bytes()))
SAME, CONFIGS = FACTS["same_for_all"], FACTS["configs"]
STEPS_OF_EPOCH = {"coco": 7391, "ade20k": 1262, "cityscapes": 186}  # of 16 images

every_config = pytest.mark.parametrize("path", CONFIGS)


def load(path: str) -> CfgNode:
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(FOLDER / path))
    return cfg


def timm_name(backbone: str) -> str:
    """Return timm's name of a backbone, which the DINOv3 configs name as transformers does."""
    sizes = {"vits16": "small", "vitb16": "base", "vitl16": "large"}
    for short, size in sizes.items():
        if short in backbone:
            return f"vit_{size}_patch16_dinov3_qkvb"
    return backbone


def expected_values(path: str) -> dict[str, Any]:
    """Translate the published settings of a config to our keys."""
    facts, dataset = CONFIGS[path], path.split("/")[1]
    size = facts.get("img_size_in_results_table", facts["img_size"])
    decays = facts["llrd_l2_enabled"] and facts["lr_mult"] == 1
    return {
        "MODEL.EOMT.VIT": timm_name(facts["backbone"]),
        "MODEL.EOMT.PATCH_SIZE": SAME["patch_size"],
        "MODEL.EOMT.IMAGE_SIZE": size,
        "MODEL.EOMT.NUM_BLOCKS": facts["num_blocks"],
        "MODEL.EOMT.ANNEALING.ENABLED": SAME["attn_mask_annealing_enabled"],
        "MODEL.EOMT.ANNEALING.POWER": SAME["poly_power"],
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": facts["num_classes"],
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": facts["num_q"],
        "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": SAME["no_object_coefficient"],
        "MODEL.MASK_FORMER.CLASS_WEIGHT": SAME["class_coefficient"],
        "MODEL.MASK_FORMER.MASK_WEIGHT": SAME["mask_coefficient"],
        "MODEL.MASK_FORMER.DICE_WEIGHT": SAME["dice_coefficient"],
        "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": SAME["num_points"],
        "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": SAME["oversample_ratio"],
        "MODEL.MASK_FORMER.IMPORTANCE_SAMPLE_RATIO": SAME["importance_sample_ratio"],
        "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": SAME["mask_thresh"],
        "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": SAME["overlap_thresh"],
        "MODEL.MASK_FORMER.TEST.SEMANTIC_ON": facts["task"] == "semantic",
        "MODEL.MASK_FORMER.TEST.PANOPTIC_ON": facts["task"] == "panoptic",
        "MODEL.MASK_FORMER.TEST.INSTANCE_ON": facts["task"] == "instance",
        "INPUT.IMAGE_SIZE": size[0],
        "INPUT.MIN_SCALE": facts["scale_range"][0],
        "INPUT.MAX_SCALE": facts["scale_range"][1],
        "INPUT.COLOR_AUG_SSD": facts["color_jitter_enabled"],
        "SOLVER.IMS_PER_BATCH": SAME["total_batch_size"],
        "SOLVER.MAX_ITER": facts["max_epochs"] * STEPS_OF_EPOCH[dataset],
        "SOLVER.BASE_LR": facts["lr"],
        "SOLVER.POLY_LR_POWER": SAME["poly_power"],
        "SOLVER.WARMUP_STEPS": facts["warmup_steps"],
        "SOLVER.LAYER_DECAY": facts["llrd"],
        "SOLVER.LAYER_DECAY_LAST_BLOCKS": decays,
        "SOLVER.WEIGHT_DECAY": SAME["weight_decay"],
        "SOLVER.WEIGHT_DECAY_NORM": SAME["weight_decay"],
        "SOLVER.WEIGHT_DECAY_EMBED": SAME["weight_decay"],
        "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": SAME["gradient_clip_norm"],
        "SOLVER.AMP.ENABLED": True,
        "SOLVER.AMP.DTYPE": "float16",
        "TEST.RESIZE": "cover" if facts["task"] == "semantic" else "fit",
        "TEST.SLIDING_WINDOW.SIZE": size[0] if facts["task"] == "semantic" else 0,
    }


def value_of(cfg: CfgNode, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node[part]
    return list(node) if isinstance(node, tuple) else node


def test_there_is_one_config_for_each_published_one() -> None:
    found = {str(p.relative_to(FOLDER)) for p in FOLDER.rglob("*.yaml") if p.parent != FOLDER}
    assert found == set(CONFIGS) and len(found) == 23


@every_config
def test_values_are_the_published_ones(path: str) -> None:
    cfg = load(path)
    expected = expected_values(path)
    assert {key: value_of(cfg, key) for key in expected} == expected
    validate(cfg)


@every_config
def test_a_checkpoint_of_the_config_can_be_opened_for_inference(path: str) -> None:
    cfg = load(path)
    cfg.MODEL.WEIGHTS, cfg.MODEL.DEVICE = "", "meta"
    rebuilt = cfg_from_settings(inference_settings(cfg), [], path)
    rebuilt.MODEL.DEVICE = "meta"
    assert Annealing.from_config(rebuilt).start_steps == ()
    assert rebuilt.MODEL.EOMT.VIT == cfg.MODEL.EOMT.VIT
    assert rebuilt.TEST.RESIZE == cfg.TEST.RESIZE


@every_config
def test_masks_are_annealed_at_the_published_steps(path: str) -> None:
    cfg, facts = load(path), CONFIGS[path]
    annealing, total = Annealing.from_config(cfg), cfg.SOLVER.MAX_ITER
    starts, ends = (facts[f"attn_mask_annealing_{kind}_steps"] for kind in ("start", "end"))
    blocks = facts["num_blocks"]
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        found = [annealing.remaining(step, total, blocks)[index] for step in (start, start + 1)]
        assert found[0] == 1 > found[1]
        found = [annealing.remaining(step, total, blocks)[index] for step in (end - 1, end)]
        assert found[0] > 0 == found[1]


@every_config
def test_the_model_zoo_has_the_published_score_and_the_weights(path: str) -> None:
    zoo = (ROOT / "MODEL_ZOO.md").read_text(encoding="utf-8")
    (row,) = [line for line in zoo.splitlines() if f"(configs/eomt/{path})" in line]
    _, score, repository = FACTS["results"][path]
    assert f"| {score} |" in row
    link = f"https://huggingface.co/{repository}/resolve/main/pytorch_model.bin"
    assert (link if repository else "not published") in row
    assert ("a difference to DINOv3" in row) == path.startswith("dinov3/")


@every_config
def test_the_opening_comment_has_paper_score_and_command(path: str) -> None:
    text = (FOLDER / path).read_text(encoding="utf-8")
    assert isinstance(yaml.safe_load(text), dict)
    comment = text.partition("_BASE_")[0]
    metric, score, _ = FACTS["results"][path]
    assert "arXiv 2503.19108" in comment and f"{score}" in comment
    assert {"mAP": "mask AP"}.get(metric, metric) in comment
    assert f"--config-file configs/eomt/{path}" in comment
