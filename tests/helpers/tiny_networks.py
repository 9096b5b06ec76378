"""Tiny models of the three backbone families, with random weights."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mask_former.config.keys import get_mask_former_cfg
from tests.helpers.paths import ROOT

FAMILIES: dict[str, list[Any]] = {
    # few channels: building and copying the weights of a ResNet takes longer than running it
    "resnet": ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50]
    + ["MODEL.RESNETS.STEM_OUT_CHANNELS", 16, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64]
    + ["MODEL.RESNETS.WIDTH_PER_GROUP", 16, "MODEL.RESNETS.NORM", "BN"]
    + ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]],
    # no feature map is divisible by a window of 3, so all are padded
    "swin": ["MODEL.BACKBONE.NAME", "D2SwinTransformer", "MODEL.SWIN.EMBED_DIM", 8]
    + ["MODEL.SWIN.DEPTHS", [2, 1, 1, 1], "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 4]]
    + ["MODEL.SWIN.WINDOW_SIZE", 3],
    "timm": ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME"]
    + ["tf_mobilenetv3_small_minimal_100"],
}
HEAD: list[Any] = ["MODEL.META_ARCHITECTURE", "MaskFormer", "MODEL.SEM_SEG_HEAD.NAME"]
HEAD += ["MaskFormerHead", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]
HEAD += ["MODEL.SEM_SEG_HEAD.MASK_DIM", 8, "MODEL.SEM_SEG_HEAD.NORM", "GN"]
HEAD += ["MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"]]
HEAD += ["MODEL.MASK_FORMER.HIDDEN_DIM", 16, "MODEL.MASK_FORMER.NHEADS", 2]
HEAD += ["MODEL.MASK_FORMER.DIM_FEEDFORWARD", 16, "MODEL.MASK_FORMER.DEC_LAYERS", 1]
HEAD += ["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6]

# Settings that make the model a Mask2Former, with four decoder layers.
MASK2FORMER: list[Any] = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "MSDeformAttnPixelDecoder"]
MASK2FORMER += ["MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", 1, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]
MASK2FORMER += ["MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME", "MultiScaleMaskedTransformerDecoder"]
MASK2FORMER += ["MODEL.MASK_FORMER.TRANSFORMER_IN_FEATURE", "multi_scale_pixel_decoder"]
MASK2FORMER += ["MODEL.MASK_FORMER.DEC_LAYERS", 5, "MODEL.MASK_FORMER.DROPOUT", 0.0]
MASK2FORMER += ["MODEL.MASK_FORMER.MASK_TERM", "cross_entropy"]
MASK2FORMER += ["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 100]
MASK2FORMER += ["MODEL.MASK_FORMER.POINT_PADDING", "zeros"]
MASK2FORMER += ["MODEL.MASK_FORMER.POINT_TARGETS", "bilinear"]


def tiny_cfg(family: str, opts: list[Any] | None = None) -> CfgNode:
    """Return the config of a tiny model, with config keys and values."""
    cfg = get_mask_former_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATASETS.TRAIN", ()])
    cfg.merge_from_list([*FAMILIES[family], *HEAD, *(opts or [])])
    return cfg


def tiny_network(family: str, opts: list[Any] | None = None) -> Any:
    """Build the model in evaluation mode, its query embeddings scaled up so that they differ."""
    torch.manual_seed(0)
    model = build_model(tiny_cfg(family, opts)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "query_embed" in name:
                weight.mul_(5)
            if "relative_position_bias" in name:  # initialized close to 0
                weight.normal_()
    return model


def tiny_eomt(opts: list[Any] | None = None, vit: str = "test_vit") -> Any:
    """Build an EoMT for images of 64×96 pixels, 4 classes and 6 queries, in evaluation mode."""
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "eomt" / "Base-EoMT.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "DATASETS.TRAIN", ()])
    cfg.merge_from_list(["MODEL.EOMT.VIT", vit, "MODEL.EOMT.IMAGE_SIZE", [64, 96]])
    cfg.merge_from_list(["MODEL.SEM_SEG_HEAD.NUM_CLASSES", 4])
    cfg.merge_from_list(["MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", 6])
    cfg.merge_from_list(["MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 100, *(opts or [])])
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    with torch.no_grad():
        model.sem_seg_head.q.weight.mul_(3)  # so that masks are neither empty nor full
    return model
