"""Convert a torchvision ResNet's weights into a file for MODEL.WEIGHTS and `build_resnet_backbone`.

python tools/convert_torchvision_to_d2.py --checkpoint resnet101-63fe2227.pth --output R-101.pkl
python tools/convert_torchvision_to_d2.py --model resnet50 --output R-50.safetensors

--model takes the file that torchvision has already downloaded. ResNet, ResNeXt and Wide ResNet are
converted, without their classifier.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

from mask_former.huggingface.tables import RESNET_DEPTHS

from .backbone_conversion import add_output_argument, convert_file
from .command import exit_code, make_parser

__all__ = ["ConvertTorchvisionArguments", "main", "parse"]

RENAMES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^(layer\d\.\d+)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"^(layer\d\.\d+)\.downsample\.0\.", r"\1.shortcut."),
    (r"^(layer\d\.\d+)\.downsample\.1\.", r"\1.shortcut.norm."),
    # detectron2 counts the stem as the first stage.
    *((rf"^layer{stage}\.", f"res{stage + 1}.") for stage in (1, 2, 3, 4)),
)
"""Regular expressions for torchvision's names and detectron2's replacements, in this order."""

DEPTHS = {(kind, tuple(blocks)): depth for depth, (kind, blocks) in RESNET_DEPTHS.items()}
"""``MODEL.RESNETS.DEPTH`` by the kind of block and the number of blocks in each stage."""


def find_checkpoint(model: str) -> Path:
    """Find the file with torchvision's weights of a model in torch's cache.

    Raises:
        ValueError: If torchvision has no such model.
        FileNotFoundError: If the file has not been downloaded.
    """
    from torchvision.models import get_model_weights

    known = [Path(urlparse(weights.url).path).name for weights in get_model_weights(model)]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    for name in known:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"There are no weights of {model} in {folder}: expected {' or '.join(known)}. Download one "
        "(torchvision.models does so when it builds the model with weights), or give a file with "
        "--checkpoint."
    )


def convert(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Convert torchvision's state dict to detectron2's.

    Returns:
        The weights, named ``backbone.…``, without the classifier, and the ``MODEL`` settings of
        their backbone.

    Raises:
        ValueError: If it is not a ResNet that detectron2 can build.
    """
    converted = {
        f"backbone.{rename(name)}": value
        for name, value in weights.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    foreign = [name for name in converted if not re.match(r"backbone\.(stem|res[2-5])\.", name)]
    if foreign or "backbone.res2.0.conv2.weight" not in converted:
        found = ", ".join(list(weights)[:3])
        raise ValueError(
            f"is not a ResNet of torchvision (conv1, layer1 … layer4): it has {found}, …"
        )
    backbone = {"NAME": "build_resnet_backbone"}
    return converted, {"BACKBONE": backbone, "RESNETS": resnet_settings(converted)}


def rename(name: str) -> str:
    """Translate one of torchvision's names to detectron2's."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def resnet_settings(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the ``MODEL.RESNETS`` settings of the backbone of converted weights.

    Raises:
        ValueError: If detectron2 has no such ResNet.
    """
    blocks = tuple(
        sum(bool(re.fullmatch(rf"backbone\.res{stage}\.\d+\.conv1\.weight", k)) for k in weights)
        for stage in (2, 3, 4, 5)
    )
    kind = "bottleneck" if "backbone.res2.0.conv3.weight" in weights else "basic"
    if (kind, blocks) not in DEPTHS:
        raise ValueError(
            f"is a ResNet with {blocks} {kind} blocks in its stages, which detectron2 cannot build"
        )
    kernel = tuple(weights["backbone.res2.0.conv2.weight"].shape)
    if len(kernel) != 4 or 0 in kernel:
        raise ValueError(f"has a convolution layer1.0.conv2.weight of the shape {kernel}")
    width, group_width = kernel[:2]
    settings: dict[str, Any] = {"DEPTH": DEPTHS[kind, blocks], "STRIDE_IN_1X1": False}
    if kind == "basic":
        settings["RES2_OUT_CHANNELS"] = width
    elif group_width != 64:
        settings.update(NUM_GROUPS=width // group_width, WIDTH_PER_GROUP=group_width)
    return settings


@dataclass(frozen=True)
class ConvertTorchvisionArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    checkpoint: Path | None
    model: str | None
    output: Path


def parse(argv: Sequence[str] | None) -> ConvertTorchvisionArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="torchvision's .pth file")
    source.add_argument("--model", help="torchvision's name of a model, such as resnet50")
    add_output_argument(parser)
    return ConvertTorchvisionArguments(**vars(parser.parse_args(argv)))


def run(arguments: ConvertTorchvisionArguments) -> int:
    """Convert the file, print a config for it, and return the exit code."""
    path = arguments.checkpoint or find_checkpoint(arguments.model or "")
    print(convert_file(path, arguments.output, convert), end="")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("convert_torchvision_to_d2", lambda: run(arguments))
