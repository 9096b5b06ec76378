"""Golden cases: reading their files and recreating their inputs (see golden/README.md)."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from torch import Tensor, nn

from mask_former.config.keys import get_mask_former_cfg
from tests.helpers.paths import GOLDEN, ROOT

WIDE = ("query_feat.weight", "query_embed.weight")
"""Endings of the names of weights with a standard deviation of 1 in Mask2Former's cases."""


def load_case(name: str, folder: Path = GOLDEN) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Read the facts (JSON) and the arrays (npz) of a case."""
    facts = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as arrays:
        return facts, dict(arrays)


def build_case_model(facts: dict[str, Any]) -> tuple[Any, nn.Module]:
    """Build the config of a case and its model, with the weights of :func:`fill_weights`."""
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / facts["config"]))
    cfg.merge_from_list(facts["overrides"])
    model = build_model(cfg)
    fill_weights(model, wide=WIDE if facts["config"].startswith("mask2former/") else ())
    return cfg, model


def fill_weights(model: nn.Module, prefix: str = "", wide: tuple[str, ...] = ()) -> None:
    """Fill each weight with random values, seeded with the checksum of its name.

    Args:
        model: the model, or a part of one.
        prefix: the part's name in the model, with a dot.
        wide: endings of the names of weights whose values have a standard deviation of 1.
    """
    for name, value in model.state_dict(prefix=prefix).items():
        if name.startswith("criterion.") or not value.is_floating_point():
            continue
        if wide and name.endswith(wide):
            random = seeded(name, 0, value.shape)
        elif name.endswith("running_var"):
            random = 1 + 0.1 * seeded(name, 0, value.shape).abs()
        else:
            random = random_weight(name, value.shape)
        value.copy_(random)


def random_weight(name: str, shape: Sequence[int]) -> Tensor:
    """Return random values for a weight, seeded with the checksum of its name."""
    random = seeded(name, 0, shape)
    if len(shape) >= 2:
        return random / math.prod(shape[1:]) ** 0.5
    return 1 + 0.1 * random if name.endswith("weight") else 0.1 * random


def seeded(name: str, seed: int, shape: Sequence[int]) -> Tensor:
    """Return normally distributed values that depend on the name and the seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
    return torch.randn(tuple(shape), generator=generator)


def make_image(
    index: int, size: tuple[int, int], arrays: dict[str, np.ndarray], seed: int = 7
) -> Tensor:
    """Draw image ``index`` of a case from a seed: uint8, 3×H×W.

    ``arrays`` has the few pixels whose value before rounding is so close to a half that it would
    be rounded differently on another machine.
    """
    height, width = size
    g = torch.Generator().manual_seed(seed + index)
    coarse = torch.rand(1, 3, height // 16 + 1, width // 16 + 1, generator=g)
    smooth = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)[0]
    noise = torch.rand(3, height, width, generator=g)
    image = (smooth * 200 + noise * 55).round().to(torch.uint8)
    ties = torch.from_numpy(arrays[f"image_ties{index}"]).long()
    image.view(-1)[ties] = torch.from_numpy(arrays[f"image_tie_values{index}"])
    return image


def unpack_masks(packed: np.ndarray, shape: list[int]) -> Tensor:
    """Unpack bits to bool N×H×W."""
    count = int(np.prod(shape))
    return torch.from_numpy(np.unpackbits(packed)[:count].reshape(shape)).bool()
