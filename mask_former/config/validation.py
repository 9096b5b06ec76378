"""Validation of a config before anything is built from it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from mask_former.inference import SlidingWindow
from mask_former.losses import ON_NONFINITE
from mask_former.losses.build import build_mask_term, build_point_rule
from mask_former.registries import (
    CRITERION_REGISTRY,
    DATASET_MAPPER_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    lookup,
)

from .keys import get_mask_former_cfg

__all__ = ["BOX_MODEL_NODES", "OWN_ARCHITECTURES", "changed_keys", "validate"]

OWN_ARCHITECTURES = ("MaskFormer", "SemanticSegmentor")
"""Meta-architectures of this project's models; some checks apply only to their configs."""

_HIGH_ADAMW_RATE = 1e-3
"""Base learning rate above which AdamW usually diverges."""

_MAX_TEST_SIDE = 8192
"""Shortest side in pixels that images may be resized to; memory grows with its square."""
_MIN_STEP, _MAX_OVERLAP = 32, 8
"""Smallest stride of the sliding window: in pixels, and as a divisor of the window's side."""
_LAYERS = (
    "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
    "MODEL.MASK_FORMER.ENC_LAYERS",
    "MODEL.MASK_FORMER.DEC_LAYERS",
)
_SIZES = {
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 65_536,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 65_536,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 65_536,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 65_536,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 65_536,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 65_536,
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": 65_536,
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": 2**20,
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": 1000,
    **dict.fromkeys(_LAYERS, 1000),
}
"""Largest size of a model: classes, queries, channels, layers and points, and of padded images."""

_MASK_FORMER_KEYS = (
    "MODEL.COMPILE",
    "MODEL.ACTIVATION_CHECKPOINTING",
    "TEST.AMP.ENABLED",
    "TEST.SLIDING_WINDOW.SIZE",
)
"""Keys that only the meta-architecture ``MaskFormer`` reads; 0 or False turns them off."""

BOX_MODEL_NODES = (
    "ANCHOR_GENERATOR",
    "PANOPTIC_FPN",
    "PROPOSAL_GENERATOR",
    "RETINANET",
    "ROI_BOX_CASCADE_HEAD",
    "ROI_BOX_HEAD",
    "ROI_HEADS",
    "ROI_KEYPOINT_HEAD",
    "ROI_MASK_HEAD",
    "RPN",
)
"""Nodes of ``MODEL`` that only detectron2's box-based models read."""


def validate(cfg: CfgNode) -> None:
    """Check everything that depends on the config alone; a high learning rate is only logged.

    Raises:
        KeyError: if a name is not registered; the message lists the registered names.
        ValueError: if a value has the wrong type, is out of range, contradicts another one, or has
            no effect; the message names the keys and the fix.
    """
    _check_lists(cfg)
    _check_names(cfg)
    _check_input(cfg)
    _check_swin(cfg)
    _check_finetuning(cfg)
    _check_numbers(cfg)
    _check_sliding_window(cfg)
    _check_test_sizes(cfg)
    _check_idle_keys(cfg)
    _check_fixed_keys(cfg)
    _check_optimizer(cfg)
    _check_finite(cfg)
    _check_sizes(cfg)


def _check_lists(cfg: CfgNode) -> None:
    """Compare the types of list items with the default's; yacs checks only that both are lists."""
    known = dict(_leaves(get_mask_former_cfg()))
    for key, value in _leaves(cfg):
        default = known.get(key)
        if value is None and default is not None:
            raise ValueError(f"{key} has no value; expected one, such as {default!r}.")
        if not isinstance(value, list | tuple) or not isinstance(default, list | tuple):
            continue
        kinds = {_kind(item) for item in default}
        if not kinds and key.startswith("DATASETS."):
            kinds = {"text"}
        wrong = [item for item in value if _kind(item) not in kinds]
        if kinds and wrong:
            raise ValueError(
                f"{key} is {str(value)[:80]}: found {str(wrong[0])[:40]!r}, expected "
                f"{' or '.join(sorted(kinds))}."
            )


def _check_finite(cfg: CfgNode) -> None:
    """Refuse NaN, infinity (except to disable gradient clipping), and integers beyond 64 bits."""
    for key, value in _leaves(cfg):
        for item in value if isinstance(value, list | tuple) else [value]:
            is_infinite = isinstance(item, float) and math.isinf(item)
            if item != item or (is_infinite and not key.startswith("SOLVER.CLIP_GRADIENTS.")):
                raise ValueError(f"{key} is {str(value)[:80]}: expected finite numbers.")
            if isinstance(item, int) and abs(item) >= 2**63:
                raise ValueError(f"{key} is {str(value)[:80]}: expected 64-bit numbers.")


def _check_sizes(cfg: CfgNode) -> None:
    """Refuse sizes that no memory holds."""
    for key, most in _SIZES.items():
        if _get(cfg, key) > most:
            raise ValueError(
                f"{key} is {_get(cfg, key)}; expected at most {most}: no memory holds "
                "such a model or its images. Set it to a smaller number."
            )


def _kind(value: Any) -> str:
    """Name the type of a value for error messages."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "another type")


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the full name of every key, and its value."""
    for key, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _check_names(cfg: CfgNode) -> None:
    for registry, key in (
        (META_ARCH_REGISTRY, "MODEL.META_ARCHITECTURE"),
        (BACKBONE_REGISTRY, "MODEL.BACKBONE.NAME"),
        (SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.NAME"),
        (SEM_SEG_HEADS_REGISTRY, "MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME"),
        (TRANSFORMER_DECODER_REGISTRY, "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"),
        (CRITERION_REGISTRY, "MODEL.MASK_FORMER.CRITERION_NAME"),
        (MATCHER_REGISTRY, "MODEL.MASK_FORMER.MATCHER.NAME"),
        (DATASET_MAPPER_REGISTRY, "INPUT.DATASET_MAPPER_NAME"),
    ):
        lookup(registry, _get(cfg, key), key)
    for name in cfg.MODEL.MASK_FORMER.LOSSES:
        lookup(LOSS_REGISTRY, name, "MODEL.MASK_FORMER.LOSSES")
    choice = cfg.MODEL.MASK_FORMER.MATCHER.ON_NONFINITE
    if choice not in ON_NONFINITE:
        raise ValueError(
            f"MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is {choice!r}; it must be in "
            f"{list(ON_NONFINITE)}."
        )


def _check_input(cfg: CfgNode) -> None:
    crop, side = cfg.INPUT.CROP, cfg.INPUT.SIZE_DIVISIBILITY
    if crop.ENABLED and crop.TYPE == "absolute" and 0 < side < max(crop.SIZE):
        raise ValueError(
            f"INPUT.CROP.SIZE is {list(crop.SIZE)}, larger than INPUT.SIZE_DIVISIBILITY = {side}, "
            f"the side that crops are padded to: set INPUT.SIZE_DIVISIBILITY to {max(crop.SIZE)}."
        )
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if len(mean) != len(std) or min(std) <= 0:
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {list(mean)} and MODEL.PIXEL_STD {list(std)}; expected a value "
            "for each channel in both, and standard deviations above 0."
        )


def _check_swin(cfg: CfgNode) -> None:
    node = cfg.MODEL.SWIN
    sizes = [*node.DEPTHS, *node.NUM_HEADS, node.EMBED_DIM, node.WINDOW_SIZE]
    if len(node.DEPTHS) != len(node.NUM_HEADS) or any(
        type(size) is not int or not 1 <= size < 2**20 for size in sizes
    ):
        raise ValueError(
            f"MODEL.SWIN.DEPTHS is {str(node.DEPTHS)[:80]}, NUM_HEADS {str(node.NUM_HEADS)[:80]}, "
            f"EMBED_DIM {str(node.EMBED_DIM)[:20]} and WINDOW_SIZE {str(node.WINDOW_SIZE)[:20]}; "
            "expected integers above 0, and DEPTHS and NUM_HEADS of the same length."
        )


def _check_finetuning(cfg: CfgNode) -> None:
    node = cfg.MODEL.MASK_FORMER
    if node.FINETUNE_CLASSES_FROM and not node.FINETUNE:
        raise ValueError(
            f"MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is {node.FINETUNE_CLASSES_FROM!r}, but "
            "MODEL.MASK_FORMER.FINETUNE is False: set it to True, or FINETUNE_CLASSES_FROM to ''."
        )


def _check_numbers(cfg: CfgNode) -> None:
    if not cfg.MODEL.DEVICE:
        raise ValueError("MODEL.DEVICE is empty; expected 'cuda' or 'cpu'.")
    head = ("NUM_CLASSES", "CONVS_DIM", "MASK_DIM")
    transformer = ("NUM_OBJECT_QUERIES", "HIDDEN_DIM", "DIM_FEEDFORWARD", "NHEADS")
    for key in (
        *(f"MODEL.SEM_SEG_HEAD.{name}" for name in head),
        *(f"MODEL.MASK_FORMER.{name}" for name in transformer),
    ):
        if _get(cfg, key) < 1:
            raise ValueError(f"{key} is {_get(cfg, key)}; expected 1 or more.")
    for key in _LAYERS:
        if _get(cfg, key) < 0:
            raise ValueError(f"{key} is {_get(cfg, key)}; expected 0 or more.")
    node = cfg.MODEL.MASK_FORMER
    build_mask_term(cfg)  # checks its keys
    build_point_rule(cfg)  # checks its keys
    for name in ("NO_OBJECT_WEIGHT", "CLASS_WEIGHT", "MASK_WEIGHT", "DICE_WEIGHT"):
        if not node[name] >= 0:  # refuses NaN, too
            raise ValueError(f"MODEL.MASK_FORMER.{name} is {node[name]}; expected 0 or more.")
    for name in ("OBJECT_MASK_THRESHOLD", "OVERLAP_THRESHOLD"):
        if not 0 <= node.TEST[name] <= 1:
            raise ValueError(
                f"MODEL.MASK_FORMER.TEST.{name} is {node.TEST[name]}; it must lie in [0, 1]."
            )


def _check_sliding_window(cfg: CfgNode) -> None:
    window, test = cfg.TEST.SLIDING_WINDOW, cfg.MODEL.MASK_FORMER.TEST
    made = SlidingWindow.of(
        window.SIZE, window.STRIDE, panoptic_on=test.PANOPTIC_ON, instance_on=test.INSTANCE_ON
    )
    smallest = max(_MIN_STEP, window.SIZE // _MAX_OVERLAP)
    if made is not None and made.step < smallest:
        raise ValueError(
            f"TEST.SLIDING_WINDOW.STRIDE is {made.step} pixels with the SIZE {window.SIZE}, which "
            f"gives too many windows: expected {smallest} … SIZE pixels (0: 2/3 of the SIZE)."
        )


def _check_test_sizes(cfg: CfgNode) -> None:
    for key in ("INPUT.MIN_SIZE_TEST", "TEST.AUG.MIN_SIZES"):
        value = _get(cfg, key)
        for side in value if isinstance(value, list | tuple) else [value]:
            if not 0 <= side <= _MAX_TEST_SIDE:
                raise ValueError(
                    f"{key} is {str(value)[:80]}: expected 0 … {_MAX_TEST_SIDE} pixels. For large "
                    "images, set TEST.SLIDING_WINDOW.SIZE, and INPUT.MIN_SIZE_TEST to 0."
                )


def _check_idle_keys(cfg: CfgNode) -> None:
    """Refuse keys that are set but do not affect this model, because they hide a mistake."""
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture != "MaskFormer":
        for key in _MASK_FORMER_KEYS:
            if value := _get(cfg, key):
                raise ValueError(
                    f"{key} is {value}, but MODEL.META_ARCHITECTURE {architecture!r} does not read "
                    f"it, only 'MaskFormer' does. Set it to {type(value)(0)}."
                )
    if architecture not in OWN_ARCHITECTURES:
        return
    defaults = get_cfg().MODEL
    changed = [
        f"MODEL.{node}.{key}"
        for node in BOX_MODEL_NODES
        for key in changed_keys(cfg.MODEL[node], defaults[node])
    ]
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if (
        "MODEL.ROI_HEADS.NUM_CLASSES" in changed
        and classes == defaults.SEM_SEG_HEAD.NUM_CLASSES != cfg.MODEL.ROI_HEADS.NUM_CLASSES
    ):
        raise ValueError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, but "
            f"MODEL.META_ARCHITECTURE {architecture!r} does not read it, and "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is still {classes}, detectron2's default: set the "
            "latter to the number of classes."
        )
    if changed:
        raise ValueError(
            f"These keys belong to detectron2's box-based models, and MODEL.META_ARCHITECTURE "
            f"{architecture!r} does not read them: {', '.join(changed)}. Remove them."
        )


def _check_fixed_keys(cfg: CfgNode) -> None:
    """Refuse other values of keys that the published Mask2Former has and does not read."""
    for name, fixed in (("N_POINTS", 4), ("N_HEADS", 8)):
        key = f"MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_{name}"
        if _get(cfg, key) != fixed:
            raise ValueError(
                f"{key} is {_get(cfg, key)}, but no pixel decoder reads it: leave it at {fixed}. "
                "The number of heads is MODEL.MASK_FORMER.NHEADS."
            )


def changed_keys(cfg: CfgNode, defaults: CfgNode) -> dict[str, Any]:
    """Return the values that differ from ``defaults``, by the full name of their key."""
    known = dict(_leaves(defaults))
    return {
        key: value
        for key, value in _leaves(cfg)
        if key not in known or _lists(value) != _lists(known[key])
    }


def _lists(value: Any) -> Any:
    """Replace tuples by lists, because YAML, the format of saved configs, has no tuples."""
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _check_optimizer(cfg: CfgNode) -> None:
    if cfg.SOLVER.OPTIMIZER == "ADAMW" and cfg.SOLVER.BASE_LR > _HIGH_ADAMW_RATE:
        logging.getLogger(__name__).warning(
            f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR} with SOLVER.OPTIMIZER 'ADAMW'. A rate above "
            f"{_HIGH_ADAMW_RATE} is usual for SGD; with AdamW, training may diverge. The published "
            "models use 0.0001."
        )


def _get(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
