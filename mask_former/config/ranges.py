"""Ranges of the numbers in a config."""

from __future__ import annotations

import math
from typing import Any

from detectron2.config import CfgNode

from mask_former.utils.errors import short

from .nodes import as_list, get, leaves

__all__ = ["check_finite", "check_ranges"]

_MAX_SIDE = 8192
"""Longest side in pixels that images may be resized to; memory grows with its square."""
_MOST = 65_536
_PROBABILITY = (0, 1)
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
            "MODEL.SEM_SEG_HEAD.CONVS_DIM",
            "MODEL.SEM_SEG_HEAD.MASK_DIM",
            "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
            "MODEL.MASK_FORMER.HIDDEN_DIM",
            "MODEL.MASK_FORMER.DIM_FEEDFORWARD",
            "MODEL.MASK_FORMER.NHEADS",
            "MODEL.RESNETS.STEM_OUT_CHANNELS",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "MODEL.RESNETS.NUM_GROUPS",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
            "MODEL.SWIN.EMBED_DIM",
            "MODEL.SWIN.NUM_HEADS",
        ),
        (1, _MOST),
    ),
    **dict.fromkeys(
        (
            "MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS",
            "MODEL.MASK_FORMER.ENC_LAYERS",
            "MODEL.MASK_FORMER.DEC_LAYERS",
        ),
        (0, 1000),
    ),
    "MODEL.SWIN.DEPTHS": (1, 1000),
    "MODEL.EOMT.NUM_BLOCKS": (1, 1000),
    "MODEL.EOMT.PATCH_SIZE": (1, 1024),
    "MODEL.EOMT.IMAGE_SIZE": (1, _MAX_SIDE),
    "MODEL.EOMT.ANNEALING.POWER": (0, 1000),
    "SOLVER.WARMUP_STEPS": (0, math.inf),
    "MODEL.SWIN.PRETRAIN_IMG_SIZE": (1, _MAX_SIDE),
    "MODEL.SWIN.PATCH_SIZE": (1, 1024),
    "MODEL.SWIN.WINDOW_SIZE": (1, 1024),
    "MODEL.SWIN.MLP_RATIO": (0.01, 1000),
    "MODEL.MASK_FORMER.SIZE_DIVISIBILITY": (-math.inf, _MOST),
    "MODEL.MASK_FORMER.TRAIN_NUM_POINTS": (-math.inf, 2**20),
    "MODEL.MASK_FORMER.OVERSAMPLE_RATIO": (-math.inf, 1000),
    **dict.fromkeys(
        (f"MODEL.MASK_FORMER.{name}_WEIGHT" for name in ("NO_OBJECT", "CLASS", "MASK", "DICE")),
        (0, math.inf),
    ),
    **dict.fromkeys(
        (
            "MODEL.MASK_FORMER.DROPOUT",
            "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD",
            "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD",
            "MODEL.SWIN.DROP_RATE",
            "MODEL.SWIN.ATTN_DROP_RATE",
            "MODEL.SWIN.DROP_PATH_RATE",
            "MODEL.TIMM.DROP_PATH_RATE",
            "SOLVER.LAYER_DECAY",
        ),
        _PROBABILITY,
    ),
    **dict.fromkeys(
        ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "TEST.AUG.MIN_SIZES"), (0, _MAX_SIDE)
    ),
    "INPUT.IMAGE_SIZE": (1, _MAX_SIDE),
    "INPUT.MAX_SCALE": (-math.inf, 100),
}
"""Smallest and largest value of each key, and of each item of a list."""


def check_ranges(cfg: CfgNode) -> None:
    """Refuse numbers that mean nothing, and sizes that no memory holds.

    Raises:
        ValueError: if there is one; the message names its key and the range.
    """
    for key, (least, most) in _RANGES.items():
        value = get(cfg, key)
        for item in as_list(value):
            if not least <= item <= most:  # refuses NaN, too
                raise ValueError(f"{key} is {short(value)}; {_expected(item, least, most)}")


def _expected(item: Any, least: float, most: float) -> str:
    """Return the end of the error message for a value that is out of its range."""
    if (least, most) == _PROBABILITY:
        return "it must lie in [0, 1]."
    if most == _MAX_SIDE:
        return (
            f"expected {least} … {most} pixels. For large images, train on crops, and test with "
            "TEST.SLIDING_WINDOW.SIZE and INPUT.MIN_SIZE_TEST 0."
        )
    if not item > most:
        return f"expected {least} or more."
    return (
        f"expected at most {most}: no memory holds such a model or its images. Set it to a "
        "smaller number."
    )


def check_finite(cfg: CfgNode) -> None:
    """Refuse NaN, infinity (except to disable gradient clipping), and integers beyond 64 bits.

    Raises:
        ValueError: if there is one; the message names its key.
    """
    for key, value in leaves(cfg):
        for item in as_list(value):
            is_infinite = isinstance(item, float) and math.isinf(item)
            if item != item or (is_infinite and not key.startswith("SOLVER.CLIP_GRADIENTS.")):
                raise ValueError(f"{key} is {short(value)}: expected finite numbers.")
            if isinstance(item, int) and abs(item) >= 2**63:
                raise ValueError(f"{key} is {short(value)}: expected 64-bit numbers.")
