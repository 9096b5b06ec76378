"""A model with random weights that is small enough to be built, saved and run in a test."""

from __future__ import annotations

import functools
import io
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mask_former.config.keys import get_mask_former_cfg
from tests.helpers.paths import ROOT

MASK2FORMER_BASE = ROOT / "configs/common/Base-Mask2Former-Model.yaml"
NAMES = ["sky", "road", "car", "bicyclist"]
COLORS = [[70, 130, 180], [128, 64, 128], [0, 0, 142], [119, 11, 32]]
DATASET = "tiny_model_val"


def tiny_settings(*, mask2former: bool = False, **test: Any) -> dict[str, Any]:
    """Return the config's content: 4 classes, 2 of them things.

    Args:
        mask2former: make it a Mask2Former, with three decoder layers and so four predictions.
        test: keys of ``MODEL.MASK_FORMER.TEST``.
    """
    backbone = {"NAME": "D2SwinTransformer"}
    swin = {"EMBED_DIM": 8, "DEPTHS": [1, 1, 1, 1], "NUM_HEADS": [1, 1, 1, 1], "WINDOW_SIZE": 2}
    head = {"NAME": "MaskFormerHead", "NUM_CLASSES": 4, "CONVS_DIM": 32, "MASK_DIM": 32}
    head["IN_FEATURES"] = ["res2", "res3", "res4", "res5"]
    transformer = {"HIDDEN_DIM": 16, "NHEADS": 2, "DIM_FEEDFORWARD": 16, "DEC_LAYERS": 1}
    mask_former = {**transformer, "NUM_OBJECT_QUERIES": 6, "TEST": test}
    if mask2former:
        base = yaml.safe_load(MASK2FORMER_BASE.read_text(encoding="utf-8"))["MODEL"]
        head |= {**base["SEM_SEG_HEAD"], "TRANSFORMER_ENC_LAYERS": 1}
        mask_former |= {**base["MASK_FORMER"], "DEC_LAYERS": 4, "TRAIN_NUM_POINTS": 100}
        mask_former["TEST"] = {**base["MASK_FORMER"]["TEST"], **test}
    return {
        "VERSION": 2,
        "MODEL": {
            "META_ARCHITECTURE": "MaskFormer",
            "WEIGHTS": "",
            "DEVICE": "cpu",
            "PIXEL_MEAN": [123.0, 116.0, 103.0],
            "PIXEL_STD": [58.0, 57.0, 57.0],
            "BACKBONE": backbone,
            "SWIN": swin,
            "SEM_SEG_HEAD": head,
            "MASK_FORMER": mask_former,
        },
        "INPUT": {"FORMAT": "RGB", "MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128},
        "DATASETS": {"TRAIN": [DATASET], "TEST": [DATASET]},
    }


def write_tiny_model(folder: Path, *, mask2former: bool = False, **test: Any) -> tuple[Path, Path]:
    """Write ``tiny.yaml`` and ``tiny.pth``, seed torch, and return both paths.

    See :func:`tiny_settings` for the arguments.
    """
    metadata = MetadataCatalog.get(DATASET)
    metadata.set(stuff_classes=NAMES, thing_classes=NAMES, stuff_colors=COLORS)
    metadata.set(thing_colors=COLORS, thing_dataset_id_to_contiguous_id={3: 2, 4: 3})
    config, weights = folder / "tiny.yaml", folder / "tiny.pth"
    config.write_text(yaml.safe_dump(tiny_settings(mask2former=mask2former, **test)))
    weights.write_bytes(_checkpoint(yaml.safe_dump(tiny_settings(mask2former=mask2former))))
    torch.manual_seed(0)  # whether or not this call has built the model
    return config, weights


@functools.cache
def _checkpoint(settings: str) -> bytes:
    """Return random weights, scaled up so that different queries give different results."""
    cfg = get_mask_former_cfg()
    cfg.merge_from_other_cfg(CfgNode(yaml.safe_load(settings)))
    torch.manual_seed(0)
    model = build_model(cfg)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if "class_embed.weight" in name:
                weight.mul_(2)
            if "query_embed" in name or ("mask_embed" in name and weight.ndim > 1):
                weight.mul_(10)
    content = io.BytesIO()
    torch.save({"model": model.state_dict()}, content)
    return content.getvalue()
