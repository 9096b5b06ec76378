r"""Convert the official ImageNet weights of a Swin Transformer into a file for MODEL.WEIGHTS.

python tools/convert_pretrained_swin_model_to_d2.py \
    --checkpoint swin_tiny_patch4_window7_224.pth --output swin_tiny_patch4_window7_224.pkl

The configs under `configs/` name such a .pkl; .safetensors and .pth work as well. The classifier
and the norm before it are left out: the backbone has a new norm for each of its four feature maps.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .backbone_conversion import add_output_argument, convert_file
from .command import exit_code, make_parser

__all__ = ["ConvertSwinArguments", "main", "parse"]

LEFT_OUT = re.compile(r"^head\.|^norm\.|\.attn_mask$")
"""Parameters of the classifier, and masks that depend on the image size."""

POSITIONS = "absolute_pos_embed"
"""Name of the absolute position embedding, which few models have."""


def convert(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert the official state dict to that of ``D2SwinTransformer``.

    Returns:
        The weights, named ``backbone.…``, and the ``MODEL`` settings of their backbone.

    Raises:
        ValueError: If it is not the state dict of a Swin Transformer (the first version).
    """
    needed = ("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table")
    missing = [name for name in needed if name not in weights]
    if missing:
        found = ", ".join(list(weights)[:3])
        raise ValueError(
            f"is not an official Swin Transformer: {missing[0]} is missing; it has {found}, …"
        )
    last = max(_stages(weights))
    if any(name.startswith(f"layers.{last}.downsample.") for name in weights):
        raise ValueError(
            "has timm's layout of a Swin Transformer, not the official one: its last stage begins "
            "with a downsampling"
        )
    kept = {f"backbone.{name}": v for name, v in weights.items() if not LEFT_OUT.search(name)}
    if POSITIONS in weights:  # 1×HW×C; detectron2's are 1×C×H×W
        side = _side(weights[POSITIONS])
        kept[f"backbone.{POSITIONS}"] = weights[POSITIONS].mT.unflatten(2, (side, side))
    return kept, {"BACKBONE": {"NAME": "D2SwinTransformer"}, "SWIN": swin_settings(weights)}


def swin_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the ``MODEL.SWIN`` settings of the backbone of an official state dict."""
    stages = _stages(weights)
    tables = [
        weights[f"layers.{stage}.blocks.0.attn.relative_position_bias_table"] for stage in stages
    ]
    settings: dict[str, Any] = {
        "EMBED_DIM": weights["patch_embed.proj.weight"].shape[0],
        "DEPTHS": list(stages.values()),
        "NUM_HEADS": [table.shape[1] for table in tables],
        # (2w-1)² rows: one for each offset -(w-1) … w-1 in y and in x
        "WINDOW_SIZE": (math.isqrt(len(tables[0])) + 1) // 2,
    }
    if POSITIONS in weights:
        patch = weights["patch_embed.proj.weight"].shape[-1]
        settings.update(APE=True, PRETRAIN_IMG_SIZE=_side(weights[POSITIONS]) * patch)
    return settings


def _side(positions: Tensor) -> int:
    """Return the side, in patches, of the square image of a position embedding (1×HW×C)."""
    return math.isqrt(positions.shape[1])


def _stages(weights: Mapping[str, Tensor]) -> dict[int, int]:
    """Count the blocks of each stage."""
    blocks = (re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.norm1\.weight", k) for k in weights)
    return dict(sorted(Counter(int(match[1]) for match in blocks if match).items()))


@dataclass(frozen=True)
class ConvertSwinArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    checkpoint: Path
    output: Path


def parse(argv: Sequence[str] | None) -> ConvertSwinArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    parser.add_argument("--checkpoint", required=True, type=Path, help="the official .pth file")
    add_output_argument(parser)
    return ConvertSwinArguments(**vars(parser.parse_args(argv)))


def run(arguments: ConvertSwinArguments) -> int:
    """Convert the file, print a config for it, and return the exit code."""
    print(convert_file(arguments.checkpoint, arguments.output, convert), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("convert_pretrained_swin_model_to_d2", lambda: run(arguments))
