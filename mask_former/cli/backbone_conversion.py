"""Conversion of a backbone's ImageNet weights, for the commands that share it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mask_former.utils.weight_files import as_tensors, read_checkpoint, write_weights

__all__ = ["add_output_argument", "convert_file"]

# Mean and standard deviation of ImageNet's pixels, RGB, 0 … 255. torchvision's models and Swin
# Transformers are trained with them.
_PIXEL_MEAN = [123.675, 116.28, 103.53]
_PIXEL_STD = [58.395, 57.12, 57.375]

Converter = Callable[[Mapping[str, Tensor]], tuple[dict[str, Tensor], dict[str, Any]]]


def add_output_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--output``, a weight file."""
    parser.add_argument(
        "--output", required=True, type=Path, help="a .safetensors, .pth or .pkl file"
    )


def convert_file(source: Path, output: Path, convert: Converter) -> str:
    """Write the backbone of ``source`` to ``output``, a file for ``MODEL.WEIGHTS``.

    Args:
        source: The original checkpoint.
        output: A ``.safetensors``, ``.pth`` or ``.pkl`` file.
        convert: Function that converts the state dict of ``source`` into weights with this
            project's names, and returns them with the ``MODEL`` settings of their backbone.

    Returns:
        A report: the number of entries, and the YAML of a config that uses them.

    Raises:
        FileNotFoundError: If ``source`` is missing.
        ValueError: If ``convert`` refuses it, or ``output`` has another suffix.
    """
    weights = as_tensors(read_checkpoint(source)["model"], source)
    try:
        converted, model = convert(weights)
    except ValueError as error:
        raise ValueError(f"{source} {error}.") from error
    write_weights(converted, output)
    model = {"WEIGHTS": str(output), "PIXEL_MEAN": _PIXEL_MEAN, "PIXEL_STD": _PIXEL_STD, **model}
    config = {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    return f"{output}: {len(converted)} entries of {source}. In the config:\n\n{text}"
