"""Options that all prediction commands share, parsed into frozen dataclasses."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

from mask_former.results import FORMATS, PALETTES
from mask_former.structures import RESULTS
from mask_former.visualization.overlay import INSTANCE_THRESHOLD

from .command import add_plugin_argument

__all__ = [
    "PACKAGED",
    "ModelArguments",
    "ResultArguments",
    "add_model_options",
    "add_result_options",
    "collect",
    "model_arguments",
    "positive",
]

PACKAGED = "camvid_semantic"
"""The model that comes with the code, used if none is named."""
T = TypeVar("T")


@dataclass(frozen=True)
class ModelArguments:
    """The model, its device, and the number of images at once."""

    weights: str | None
    config_file: str | None
    device: str | None
    batch_size: int
    opts: tuple[str, ...]
    """KEY VALUE …"""
    plugins: tuple[str, ...]
    """Python files with the user's own components."""


@dataclass(frozen=True)
class ResultArguments:
    """The results to compute, how they are drawn, and the ids with which they are saved."""

    save: tuple[str, ...]
    """Names from :data:`mask_former.results.FORMATS`."""
    kinds: tuple[str, ...] | None
    confidence_threshold: float | None
    palette: str
    legend: bool
    dataset: str | None
    coco_json: Path | None


def collect(arguments: type[T], parsed: argparse.Namespace) -> T:
    """Fill a dataclass with the parsed arguments of the same names, lists converted to tuples."""
    values = {field.name: getattr(parsed, field.name) for field in fields(arguments)}  # type: ignore[arg-type]
    return arguments(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def model_arguments(parser: argparse.ArgumentParser, parsed: argparse.Namespace) -> ModelArguments:
    """Collect the options of :func:`add_model_options`; exit with a message if they are wrong."""
    if len(parsed.opts) % 2:
        parser.error(f"--opts takes pairs KEY VALUE, found {len(parsed.opts)} words: {parsed.opts}")
    return collect(ModelArguments, parsed)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`ModelArguments`."""
    add = parser.add_argument
    add(
        "--weights",
        metavar="MODEL",
        help="a checkpoint, its URL, the output folder of training, or the name of a model that "
        f"comes with the code; without it and --config-file: {PACKAGED}",
    )
    add(
        "--config-file",
        metavar="FILE",
        help="the model's YAML config; with --weights only for checkpoints that contain none",
    )
    add("--device", metavar="NAME", help="such as cpu or cuda:1; by default a GPU if there is one")
    add(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="images at once; those of equal size share a forward pass (default: 1)",
    )
    add_plugin_argument(parser)
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config values, the last option: --opts MODEL.WEIGHTS model.pth INPUT.MIN_SIZE_TEST "
        "512",
    )


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of :class:`ResultArguments`."""
    add = parser.add_argument
    add(
        "--save",
        type=_formats,
        default=["overlay"],
        metavar="FORMATS",
        help=f"formats separated by commas: {', '.join(FORMATS)} (default: overlay)",
    )
    add(
        "--kinds",
        nargs="+",
        choices=list(RESULTS),
        help="results to compute, even if the config turns them off. Default: the first of "
        "panoptic, instance and semantic that the config turns on (for npz, all of them), and "
        "those that the other formats of --save need",
    )
    add(
        "--confidence-threshold",
        type=_share,
        metavar="T",
        help="from 0 to 1. Panoptic: sets MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD, the class "
        "probability that a segment needs (default: the config's). Instance: instances with lower "
        f"scores are not drawn (default: {INSTANCE_THRESHOLD}). Semantic: pixels are left "
        "unpainted where the best class has a smaller share of the sum of all classes' scores "
        "(default: 0, every pixel is painted). Saved instances and class ids are not filtered",
    )
    add("--palette", choices=list(PALETTES), default="dataset", help="colours of the classes")
    add("--legend", action="store_true", help="add a panel with the classes that were found")
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument(
        "--dataset",
        metavar="NAME",
        help="the registered dataset of the files: panoptic-coco and instances-coco get its "
        "category and image ids, as its evaluators expect them",
    )
    ids.add_argument(
        "--coco-json",
        type=Path,
        metavar="FILE",
        help="the same from a COCO JSON: images by file name, classes by name",
    )


def positive(text: str) -> int:
    """Convert an argument to an integer of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _formats(text: str) -> list[str]:
    formats = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is not a format; expected some of {','.join(FORMATS)}"
        )
    return formats
