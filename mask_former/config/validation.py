"""Validation of a config before anything is built from it."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.config import CfgNode
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
from mask_former.utils.errors import short

from .backbones import check_backbone
from .idle_keys import check_idle_keys
from .keys import get_mask_former_cfg
from .nodes import get, leaves
from .ranges import check_finite, check_ranges

__all__ = ["validate"]

_HIGH_ADAMW_RATE = 1e-3
"""Base learning rate above which AdamW usually diverges."""

_SETS = ("FEATURES", ".LOSSES")
"""Ends of the keys whose lists name each thing once."""
_MIN_STEP, _MAX_OVERLAP = 32, 8
"""Smallest stride of the sliding window: in pixels, and as a divisor of the window's side."""


def validate(cfg: CfgNode) -> None:
    """Check everything that depends on the config alone; a high learning rate is only logged.

    Raises:
        KeyError: if a name is not registered; the message lists the registered names.
        ValueError: if a value has the wrong type, is out of range, contradicts another one, or has
            no effect; the message names the keys and the fix.
    """
    _check_lists(cfg)
    _check_names(cfg)
    check_ranges(cfg)
    check_finite(cfg)
    _check_input(cfg)
    check_backbone(cfg)
    _check_mask_former(cfg)
    _check_sliding_window(cfg)
    check_idle_keys(cfg)
    _check_optimizer(cfg)


def _check_lists(cfg: CfgNode) -> None:
    """Compare list items with the default's types, which yacs does not; refuse repeated names."""
    known = dict(leaves(get_mask_former_cfg()))
    for key, value in leaves(cfg):
        default = known.get(key)
        if value is None and default is not None:
            raise ValueError(f"{key} has no value; expected one, such as {default!r}.")
        if not isinstance(value, list | tuple) or not isinstance(default, list | tuple):
            continue
        if not value and default and key.endswith("FEATURES"):
            raise ValueError(f"{key} is empty; expected names of maps, such as {list(default)}.")
        twice = [item for item in value if value.count(item) > 1]
        if twice and key.endswith(_SETS):
            raise ValueError(f"{key} is {short(value)}: {twice[0]!r} is listed twice; remove one.")
        kinds = {_kind(item) for item in default}
        if not kinds and key.startswith("DATASETS."):
            kinds = {"text"}
        if not kinds and key.endswith("_STEPS"):
            kinds = {"a number"}
        wrong = [item for item in value if _kind(item) not in kinds]
        if kinds and wrong:
            raise ValueError(
                f"{key} is {short(value)}: found {str(wrong[0])[:40]!r}, expected "
                f"{' or '.join(sorted(kinds))}."
            )


def _kind(value: Any) -> str:
    """Name the type of a value for error messages."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text"}
    return kinds.get(type(value), "a list" if isinstance(value, list | tuple) else "another type")


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
        lookup(registry, get(cfg, key), key)
    for name in cfg.MODEL.MASK_FORMER.LOSSES:
        lookup(LOSS_REGISTRY, name, "MODEL.MASK_FORMER.LOSSES")
    choice = cfg.MODEL.MASK_FORMER.MATCHER.ON_NONFINITE
    if choice not in ON_NONFINITE:
        raise ValueError(
            f"MODEL.MASK_FORMER.MATCHER.ON_NONFINITE is {choice!r}; it must be in "
            f"{list(ON_NONFINITE)}."
        )


def _check_input(cfg: CfgNode) -> None:
    if not cfg.INPUT.MIN_SIZE_TRAIN:
        raise ValueError("INPUT.MIN_SIZE_TRAIN is empty; expected a size in pixels, such as 512.")
    _check_crop(cfg)
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    if not len(mean) == len(std) > 0 or min(std) <= 0:
        raise ValueError(
            f"MODEL.PIXEL_MEAN is {list(mean)} and MODEL.PIXEL_STD {list(std)}; expected a value "
            "for each channel in both, and standard deviations above 0."
        )


def _check_crop(cfg: CfgNode) -> None:
    crop, side = cfg.INPUT.CROP, cfg.INPUT.SIZE_DIVISIBILITY
    if not crop.ENABLED:
        return
    is_relative = crop.TYPE.startswith("relative")
    if len(crop.SIZE) != 2 or not all(
        0 < length <= 1 if is_relative else length >= 1 and length == int(length)
        for length in crop.SIZE
    ):
        raise ValueError(
            f"INPUT.CROP.SIZE is {short(list(crop.SIZE))} with INPUT.CROP.TYPE {crop.TYPE!r}; "
            "expected the height and the width, "
            f"{'as fractions above 0 and up to 1' if is_relative else 'in pixels, 1 or more'}."
        )
    if crop.TYPE == "absolute" and 0 < side < max(crop.SIZE):
        raise ValueError(
            f"INPUT.CROP.SIZE is {list(crop.SIZE)}, larger than INPUT.SIZE_DIVISIBILITY = {side}, "
            f"the side that crops are padded to: set INPUT.SIZE_DIVISIBILITY to {max(crop.SIZE)}."
        )


def _check_mask_former(cfg: CfgNode) -> None:
    if not cfg.MODEL.DEVICE:
        raise ValueError("MODEL.DEVICE is empty; expected 'cuda' or 'cpu'.")
    build_mask_term(cfg)  # checks its keys
    build_point_rule(cfg)  # checks its keys
    node = cfg.MODEL.MASK_FORMER
    if node.FINETUNE_CLASSES_FROM and not node.FINETUNE:
        raise ValueError(
            f"MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM is {node.FINETUNE_CLASSES_FROM!r}, but "
            "MODEL.MASK_FORMER.FINETUNE is False: set it to True, or FINETUNE_CLASSES_FROM to ''."
        )


def _check_sliding_window(cfg: CfgNode) -> None:
    window, test = cfg.TEST.SLIDING_WINDOW, cfg.MODEL.MASK_FORMER.TEST
    made = SlidingWindow.of(
        window.SIZE,
        window.STRIDE,
        window.MODE,
        panoptic_on=test.PANOPTIC_ON,
        instance_on=test.INSTANCE_ON,
    )
    smallest = max(_MIN_STEP, window.SIZE // _MAX_OVERLAP)
    if made is not None and made.step < smallest:
        raise ValueError(
            f"TEST.SLIDING_WINDOW.STRIDE is {made.step} pixels with the SIZE {window.SIZE}, which "
            f"gives too many windows: expected {smallest} … SIZE pixels (0: 2/3 of the SIZE)."
        )


def _check_optimizer(cfg: CfgNode) -> None:
    if cfg.SOLVER.OPTIMIZER == "ADAMW" and cfg.SOLVER.BASE_LR > _HIGH_ADAMW_RATE:
        logging.getLogger(__name__).warning(
            f"SOLVER.BASE_LR is {cfg.SOLVER.BASE_LR} with SOLVER.OPTIMIZER 'ADAMW'. A rate above "
            f"{_HIGH_ADAMW_RATE} is usual for SGD; with AdamW, training may diverge. The published "
            "models use 0.0001."
        )
