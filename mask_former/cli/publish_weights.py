"""Turn a training checkpoint into a file to publish: half-precision weights, ready for inference.

    python tools/publish_weights.py output/camvid_semantic/model_final.pth weights.safetensors

MaskFormerPredictor.from_pretrained and MODEL.WEIGHTS of every command accept the result; the model
still computes in fp32. The config and the classes (names, colours) are copied from the checkpoint,
or made from --config-file, which older checkpoints need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mask_former.checkpoint.inference_data import inference_data, read_inference_data
from mask_former.config.loading import load_cfg
from mask_former.registries import load_plugins
from mask_former.utils.weight_files import (
    CLASS_NAMES,
    INFERENCE,
    as_tensors,
    averaged_weights,
    read_checkpoint,
    write_weights,
)

from .command import add_plugin_argument, exit_code, make_parser

__all__ = ["PublishArguments", "main", "parse"]


@dataclass(frozen=True)
class PublishArguments:
    """Arguments of the command; the help of :func:`parse` explains them."""

    checkpoint: Path
    output: Path
    keep_precision: bool
    ema: bool
    config_file: Path | None
    plugins: Sequence[str]


def parse(argv: Sequence[str] | None) -> PublishArguments:
    """Parse the command line; exit with a message if it is wrong."""
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("checkpoint", type=Path, help="a checkpoint of a training run")
    add("output", type=Path, help="a .safetensors file")
    add("--keep-precision", action="store_true", help="do not convert to half precision")
    add("--ema", action="store_true", help="publish the averaged weights (MODEL.EMA) instead")
    add("--config-file", type=Path, help="the config that the model was trained with")
    add_plugin_argument(parser)
    return PublishArguments(**vars(parser.parse_args(argv)))


def half(name: str, value: torch.Tensor) -> torch.Tensor:
    """Convert a float tensor to half precision; leave other tensors as they are.

    Raises:
        ValueError: If half precision cannot represent a value.
    """
    if not value.is_floating_point():
        return value.contiguous()
    small = value.to(torch.float16).contiguous()
    if not small.isfinite().all():
        raise ValueError(
            f"{name} has values that half precision cannot represent: use --keep-precision"
        )
    return small


def find_inference_data(
    content: dict[str, Any], checkpoint: Path, config_file: Path | None
) -> tuple[dict[str, Any] | None, list[str] | None]:
    """Return the ``inference`` entry and the class names, from the config or else the checkpoint.

    Raises:
        KeyError, OSError, ValueError: If the config or the entry of the checkpoint is damaged.
    """
    if config_file is not None:
        data = inference_data(load_cfg(str(config_file), ["MODEL.DEVICE", "cpu"]))
        return data, [entry["name"] for entry in data["classes"]]
    read_inference_data(content, str(checkpoint))  # a damaged entry must not be published
    return content.get(INFERENCE), content.get(CLASS_NAMES)


def run(arguments: PublishArguments) -> int:
    """Write the file, print its size, and return the exit code."""
    load_plugins(arguments.plugins)
    checkpoint, output = arguments.checkpoint, arguments.output
    if output.suffix != ".safetensors":
        raise ValueError(f"{output}: the output must end in .safetensors")
    content = read_checkpoint(checkpoint)
    if arguments.ema:
        weights = averaged_weights(content, checkpoint)
    else:
        weights = as_tensors(content["model"], checkpoint)
    if not arguments.keep_precision:
        weights = {name: half(name, value) for name, value in weights.items()}
    inference, names = find_inference_data(content, checkpoint, arguments.config_file)
    write_weights(weights, output, names, inference)
    print(f"{output}: {len(weights)} tensors, {output.stat().st_size / 1e6:.1f} MB")
    if inference is None:
        print("It contains no config: give the one of the training run with --config-file.")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    arguments = parse(argv)
    return exit_code("publish_weights", lambda: run(arguments))
