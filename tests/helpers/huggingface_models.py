"""transformers' models with random weights, and their outputs compared with ours."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # these models need no download

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask_former.config.keys import get_mask_former_cfg
from mask_former.huggingface import ConvertedCheckpoint
from tests.helpers.golden_cases import fill_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

NAMES = ["sky", "road", "car", "tram", "sea"]
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SWIN = {"embed_dim": 16, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8], "window_size": 4}
RESNET = {"depths": [3, 4, 6, 3], "embedding_size": 8, "hidden_sizes": [32, 64, 128, 256]}
BASIC = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]}
DECODER = {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}

MASK2FORMER = {"encoder_layers": 2, "decoder_layers": 5, "num_attention_heads": 4}
MASK2FORMER |= {"dim_feedforward": 48, "feature_size": 32, "hidden_dim": 32}

# By model: its family, the name of the backbone's config class, that config's settings, and the
# settings of the decoder (MaskFormer) or of the heads (Mask2Former).
SMALL: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "Swin": ("MaskFormer", "SwinConfig", SWIN, {"d_model": 32}),
    "Swin without biases, odd window": (
        "MaskFormer",
        "SwinConfig",
        {**SWIN, "qkv_bias": False, "window_size": 3, "mlp_ratio": 2.5},
        {"d_model": 32},
    ),
    "Swin as wide as the decoder": (
        "MaskFormer",
        "SwinConfig",
        {**SWIN, "embed_dim": 8},
        {"d_model": 64},
    ),
    "ResNet": ("MaskFormer", "ResNetConfig", RESNET, {"d_model": 32}),
    "ResNet, stride in 1×1": (
        "MaskFormer",
        "ResNetConfig",
        {**RESNET, "downsample_in_bottleneck": True},
        {"d_model": 32},
    ),
    "ResNet of basic blocks": ("MaskFormer", "ResNetConfig", BASIC, {"d_model": 32}),
    "Mask2Former, Swin": ("Mask2Former", "SwinConfig", SWIN, MASK2FORMER),
    "Mask2Former, ResNet": ("Mask2Former", "ResNetConfig", RESNET, MASK2FORMER),
    "Mask2Former of several widths": (
        "Mask2Former",
        "SwinConfig",
        {**SWIN, "qkv_bias": False},
        {**MASK2FORMER, "feature_size": 64},
    ),
    "Mask2Former with projections": (
        "Mask2Former",
        "SwinConfig",
        SWIN,
        {**MASK2FORMER, "enforce_input_projection": True},
    ),
}


def small_config(kind: str) -> Any:
    """Build a config of transformers with few channels and five classes."""
    family, backbone_class, backbone, head = SMALL[kind]
    backbone_config = getattr(transformers, backbone_class)(**backbone, out_features=STAGES)
    if family == "MaskFormer":
        decoder = transformers.DetrConfig(num_queries=7, **DECODER, **head)
        heads = {"decoder_config": decoder, "fpn_feature_size": 64}
    else:
        heads = {"num_queries": 7, **head}
    return getattr(transformers, f"{family}Config")(
        backbone_config=backbone_config,
        mask_feature_size=24,
        id2label=dict(enumerate(NAMES)),
        label2id={name: index for index, name in enumerate(NAMES)},
        **heads,
    )


def class_of(config: Any) -> Any:
    """Return transformers' class of the model of a config."""
    return {
        "maskformer": transformers.MaskFormerForInstanceSegmentation,
        "mask2former": transformers.Mask2FormerForUniversalSegmentation,
    }[config.model_type]


def their_model(kind: str) -> Any:
    """Build a small transformers model; all weights are random, including norms' statistics."""
    config = small_config(kind)
    model = class_of(config)(config).eval()
    with torch.no_grad():
        fill_weights(model)
    return model


def save_theirs(model: Any, folder: Path, **processor: Any) -> Path:
    """Save a transformers model and its image processor as users of transformers do."""
    model.save_pretrained(folder)
    name = f"{type(model.config).__name__.removesuffix('Config')}ImageProcessor"
    getattr(transformers, name)(**processor).save_pretrained(folder)
    return folder


def load_theirs(folder: Path) -> Any:
    """Load a transformers model from a folder, which must have exactly the model's weights."""
    config = transformers.AutoConfig.from_pretrained(folder)
    model, report = class_of(config).from_pretrained(folder, output_loading_info=True)
    assert {name: found for name, found in report.items() if found} == {}
    return model.eval()


def model_of(checkpoint: ConvertedCheckpoint) -> nn.Module:
    """Build our model of a converted checkpoint, which must have exactly the model's weights."""
    cfg = get_mask_former_cfg()
    cfg.merge_from_other_cfg(CfgNode(checkpoint.settings))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    missing, unexpected = model.load_state_dict(checkpoint.weights, strict=False)
    # the Swin of transformers' Mask2Former does not save this index, which follows from the window
    assert [name for name in missing if not name.endswith("relative_position_index")] == []
    assert unexpected == []
    return model


def random_images(height: int, width: int) -> Tensor:
    """Return two normalized images of noise, 2×3×H×W."""
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def worst_difference(theirs: Any, ours: Any, images: Tensor) -> float:
    """Return the largest absolute difference between class or mask logits of both models."""
    expected = theirs(pixel_values=images)
    found = ours.sem_seg_head(ours.backbone(images))
    pairs = (
        (found["pred_logits"], expected.class_queries_logits),
        (found["pred_masks"], expected.masks_queries_logits),
    )
    for one, other in pairs:
        assert one.shape == other.shape
        assert one.std() > 0.1, "the outputs are almost constant: equality would prove nothing"
    return max(float((one - other).abs().max()) for one, other in pairs)
