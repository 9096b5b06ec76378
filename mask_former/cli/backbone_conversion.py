"""Conversion of a backbone's ImageNet weights, for the commands that share it."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from mask_former.checkpoint.weights_fit import check_finite, compare
from mask_former.config.loading import cfg_from_settings
from mask_former.config.validation import validate
from mask_former.utils.errors import is_out_of_memory, message_of, short
from mask_former.utils.weight_files import as_tensors, read_checkpoint, write_weights

__all__ = ["add_output_argument", "build_checked", "convert_file"]

# Mean and standard deviation of ImageNet's pixels, RGB, 0 … 255. torchvision's models and Swin
# Transformers are trained with them.
_PIXEL_MEAN = [123.675, 116.28, 103.53]
_PIXEL_STD = [58.395, 57.12, 57.375]

_NEW_NORM = re.compile(r"backbone\.norm\d\.")
"""Swin's norms of feature maps, which a classifier lacks."""

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
        ValueError: If ``convert`` refuses it, its weights are not those of a backbone with these
            settings, or ``output`` has another suffix.
    """
    weights = as_tensors(read_checkpoint(source)["model"], source)
    try:
        converted, model = convert(weights)
    except ValueError as error:
        raise ValueError(f"{source} {error}.") from error
    except (ArithmeticError, LookupError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"{source} has weights that no such backbone has ({short(message_of(error), 200)})."
        ) from error
    _check_fit(converted, model, source)
    write_weights(converted, output)
    model = {"WEIGHTS": str(output), "PIXEL_MEAN": _PIXEL_MEAN, "PIXEL_STD": _PIXEL_STD, **model}
    config = {"MODEL": model, "INPUT": {"FORMAT": "RGB"}}
    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None)
    return f"{output}: {len(converted)} entries of {source}. In the config:\n\n{text}"


def build_checked(
    settings: Mapping[str, Any], source: Path, build: Callable[[CfgNode], nn.Module]
) -> nn.Module:
    """Build a model, on the CPU, from settings that come from a file.

    Args:
        settings: Content of a config file.
        source: The file, for error messages.
        build: Builds the model.

    Raises:
        ValueError: If a setting is impossible; the message names the file and the key.
    """
    try:
        cfg = cfg_from_settings(settings, ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", ""], str(source))
        validate(cfg)
        return build(cfg)
    except (KeyError, ValueError) as error:
        text = message_of(error)
        raise ValueError(text if str(source) in text else f"{source}: {text}") from error
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"{source} describes a model for which there is no memory.") from error


def _check_fit(weights: Mapping[str, Tensor], model: Mapping[str, Any], source: Path) -> None:
    """Check that converted weights are those of the backbone that ``model`` describes.

    Raises:
        ValueError: If not; the message names the first differences.
    """
    whole = {**model, "RESNETS": {**model.get("RESNETS", {}), "OUT_FEATURES": ["res5"]}}
    backbone = build_checked({"MODEL": whole}, source, build_backbone)
    state = {f"backbone.{name}": value for name, value in backbone.state_dict().items()}
    fit = compare(weights, state)
    missing = [name for name in fit.missing if not _NEW_NORM.match(name)]
    if differences := replace(fit, missing=missing).differences():
        raise ValueError(
            f"{source} does not fit the backbone of its own settings: {len(differences)} "
            f"differences, with detectron2's names: {short('; '.join(differences[:3]), 300)}."
        )
    check_finite(weights, state, str(source))
