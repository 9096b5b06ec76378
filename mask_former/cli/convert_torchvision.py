#!/usr/bin/env python3
"""Make a torchvision ResNet's weights a file that MODEL.WEIGHTS takes, for `build_resnet_backbone`.

python tools/convert_torchvision_to_d2.py --checkpoint resnet101-63fe2227.pth --output R-101.pkl
python tools/convert_torchvision_to_d2.py --model resnet50 --output R-50.safetensors

--model takes the file that torchvision has downloaded before. ResNet, ResNeXt and Wide ResNet are
converted; the classifier is left out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from conversion import convert_file
from torch import Tensor

RENAMES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"^(layer\d\.\d+)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(layer\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    # detectron2 counts stages from the stem, which is its first.
    *((rf"^layer{stage}\.", f"res{stage + 1}.") for stage in (1, 2, 3, 4)),
)
"""torchvision's names to detectron2's; applied one after the other."""

DEPTHS: dict[tuple[str, tuple[int, ...]], int] = {
    ("basic", (2, 2, 2, 2)): 18,
    ("basic", (3, 4, 6, 3)): 34,
    ("bottleneck", (3, 4, 6, 3)): 50,
    ("bottleneck", (3, 4, 23, 3)): 101,
    ("bottleneck", (3, 8, 36, 3)): 152,
}
"""Kind of block and blocks a stage, to ``MODEL.RESNETS.DEPTH``."""


def find_checkpoint(model: str) -> Path:
    """The file of torchvision's weights of a model in torch's cache.

    Raises:
        ValueError: if torchvision has no such model.
        FileNotFoundError: if it was never downloaded.
    """
    from torchvision.models import get_model_weights

    known = [Path(urlparse(weights.url).path).name for weights in get_model_weights(model)]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in known:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"There are no weights of {model} in {folder}: expected {' or '.join(known)}. Download one "
        "(torchvision.models does so when it makes the model with weights), or name a file with "
        "--checkpoint."
    )


def convert(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """torchvision's state dict to detectron2's.

    Returns:
        The weights, ``backbone.…``, without the classifier; the keys of ``MODEL`` that build their
        backbone.

    Raises:
        ValueError: if it is no ResNet that detectron2 has.
    """
    converted = {
        f"backbone.{rename(name)}": value
        for name, value in weights.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    foreign = [name for name in converted if not re.match(r"backbone\.(stem|res[2-5])\.", name)]
    if foreign or "backbone.res2.0.conv2.weight" not in converted:
        found = ", ".join(list(weights)[:3])
        raise ValueError(f"no ResNet of torchvision (conv1, layer1 … layer4): it has {found}, …")
    backbone = {"NAME": "build_resnet_backbone"}
    return converted, {"BACKBONE": backbone, "RESNETS": resnet_settings(converted)}


def rename(name: str) -> str:
    """One of torchvision's names as detectron2 has it."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def resnet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The keys of ``MODEL.RESNETS`` that build the backbone of converted weights.

    Raises:
        ValueError: if detectron2 has no such ResNet.
    """
    blocks = tuple(
        sum(bool(re.fullmatch(rf"backbone\.res{stage}\.\d+\.conv1\.weight", k)) for k in weights)
        for stage in (2, 3, 4, 5)
    )
    kind = "bottleneck" if "backbone.res2.0.conv3.weight" in weights else "basic"
    if (kind, blocks) not in DEPTHS:
        raise ValueError(f"a ResNet of {blocks} {kind} blocks in its stages; detectron2 has none")
    width, group_width = weights["backbone.res2.0.conv2.weight"].shape[:2]
    settings: dict[str, Any] = {"DEPTH": DEPTHS[kind, blocks], "STRIDE_IN_1X1": False}
    if kind == "basic":
        settings["RES2_OUT_CHANNELS"] = width
    elif group_width != 64:
        settings.update(NUM_GROUPS=width // group_width, WIDTH_PER_GROUP=group_width)
    return settings


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="torchvision's .pth file")
    source.add_argument("--model", help="torchvision's name of a model, such as resnet50")
    parser.add_argument(
        "--output", required=True, type=Path, help="a .safetensors, .pth or .pkl file"
    )
    args = parser.parse_args(arguments)
    try:
        path = args.checkpoint or find_checkpoint(args.model)
        print(convert_file(path, args.output, convert), end="")
    except (OSError, ValueError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
