#!/usr/bin/env python3
"""Make the official ImageNet weights of a Swin Transformer a file that MODEL.WEIGHTS takes.

python tools/convert_pretrained_swin_model_to_d2.py \\
    --checkpoint swin_tiny_patch4_window7_224.pth --output swin_tiny_patch4_window7_224.pkl

The configs under `configs/` name such a .pkl; .safetensors and .pth do as well. The classifier and
the norm before it are left out: each of the four maps has a norm of its own, which is new.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conversion import convert_file
from torch import Tensor

LEFT_OUT = re.compile(r"^head\.|^norm\.|\.attn_mask$")
"""The classifier, and masks that depend on the image's size."""

POSITIONS = "absolute_pos_embed"
"""A learned position embedding, in few models."""


def convert(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The official state dict to that of ``D2SwinTransformer``.

    Returns:
        The weights, ``backbone.…``; the keys of ``MODEL`` that build their backbone.

    Raises:
        ValueError: if it is not that of a Swin Transformer (the first version).
    """
    needed = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
    missing = [name for name in needed if name not in weights]
    if missing:
        found = ", ".join(list(weights)[:3])
        raise ValueError(
            f"no official Swin Transformer: {missing[0]} is missing; it has {found}, …"
        )
    last = max(_stages(weights))
    if any(name.startswith(f"layers.{last}.downsample.") for name in weights):
        raise ValueError(
            "timm's layout of a Swin Transformer, not the official one: its last stage begins "
            "with a downsampling"
        )
    kept = {f"backbone.{name}": v for name, v in weights.items() if not LEFT_OUT.search(name)}
    if POSITIONS in weights:  # 1×HW×C; detectron2's are 1×C×H×W
        side = _side(weights[POSITIONS])
        kept[f"backbone.{POSITIONS}"] = weights[POSITIONS].mT.unflatten(2, (side, side))
    return kept, {"BACKBONE": {"NAME": "D2SwinTransformer"}, "SWIN": swin_settings(weights)}


def swin_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys of ``MODEL.SWIN`` that build the backbone of an official state dict."""
    stages = _stages(weights)
    tables = [
        weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages
    ]
    settings: dict[str, Any] = {
        "EMBED_DIM": weights["patch_embed.proj.weight"].shape[0],
        "DEPTHS": list(stages.values()),
        "NUM_HEADS": [table.shape[1] for table in tables],
        # A row for each offset, -(w-1) … w-1, in y and in x
        "WINDOW_SIZE": (math.isqrt(len(tables[0])) + 1) // 2,
    }
    if POSITIONS in weights:
        patch = weights["patch_embed.proj.weight"].shape[-1]
        settings.update(APE=True, PRETRAIN_IMG_SIZE=_side(weights[POSITIONS]) * patch)
    return settings


def _side(positions: Tensor) -> int:
    """The patches a side of the square image of a position embedding 1×HW×C."""
    return math.isqrt(positions.shape[1])


def _stages(weights: Mapping[str, Tensor]) -> dict[int, int]:
    """The number of blocks of each stage."""
    blocks = (re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.norm1\.weight", k) for k in weights)
    return dict(sorted(Counter(int(match[1]) for match in blocks if match).items()))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, type=Path, help="the official .pth file")
    parser.add_argument(
        "--output", required=True, type=Path, help="a .safetensors, .pth or .pkl file"
    )
    args = parser.parse_args(arguments)
    try:
        print(convert_file(args.checkpoint, args.output, convert), end="")
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
