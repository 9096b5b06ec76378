"""What the commands that predict have in common: their options, and what they stand for."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from mask_former.config.loading import load_cfg
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.results import FORMATS, PALETTES, Result
from mask_former.structures import RESULTS
from mask_former.utils.errors import one_line
from mask_former.visualization.overlay import INSTANCE_THRESHOLD

from .dataset_ids import DatasetIds
from .run import Predict

__all__ = [
    "NEEDS",
    "PACKAGED",
    "SetupError",
    "add_model_options",
    "add_result_options",
    "dataset_ids_of",
    "kinds_of",
    "model_of",
    "positive",
    "predict_function",
    "setting_up",
]

PACKAGED = "camvid_semantic"
"""The model that comes with the code, for those who name none."""
NEEDS = {"semantic-png": "semantic", "panoptic-coco": "panoptic", "instances-coco": "instance"}
"""Formats that are made of one kind of result."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the model: which one, on which device, and how many images at once."""
    add = parser.add_argument
    add(
        "--weights",
        metavar="MODEL",
        help="a checkpoint, its URL, the output folder of a training, or the name of a model that "
        f"comes with the code; without it and --config-file: {PACKAGED}",
    )
    add(
        "--config-file",
        metavar="FILE",
        help="the model's YAML config; with --weights only for checkpoints that carry none",
    )
    add("--device", metavar="NAME", help="such as cpu or cuda:1; by default a GPU if there is one")
    add(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="images at once; those of one size share a forward pass",
    )
    add(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="config values, the last option: --opts MODEL.WEIGHTS model.pth INPUT.MIN_SIZE_TEST "
        "512",
    )


def add_result_options(parser: argparse.ArgumentParser) -> None:
    """Which results, how they are drawn, and the ids that they are saved with."""
    add = parser.add_argument
    add(
        "--save",
        type=_formats,
        default=["overlay"],
        metavar="FORMATS",
        help=f"separated by commas, of {', '.join(FORMATS)} (default: overlay)",
    )
    add(
        "--kinds",
        nargs="+",
        choices=list(RESULTS),
        help="which results to make, whether the config turns them on or not. By default the "
        "richest that the config turns on (panoptic, else instance, else semantic), all of them "
        "for npz, and what the formats of --save need",
    )
    add(
        "--confidence-threshold",
        type=_share,
        metavar="T",
        help="from 0 to 1. Panoptic: sets MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD, the class "
        "probability that a segment needs (default: the config's). Instance: instances that score "
        f"less are not drawn (default: {INSTANCE_THRESHOLD}). Semantic: pixels are left "
        "unpainted where the best class has a smaller share of the sum of all classes' scores "
        "(default: 0, every pixel is painted). Saved instances and class ids are not filtered",
    )
    add("--palette", choices=list(PALETTES), default="dataset", help="colours of the classes")
    add("--legend", action="store_true", help="a panel with the classes that are there")
    ids = parser.add_mutually_exclusive_group()
    ids.add_argument(
        "--dataset",
        metavar="NAME",
        help="a registered dataset that the files are of: panoptic-coco and instances-coco get "
        "its category and image ids, as its evaluators want them",
    )
    ids.add_argument(
        "--coco-json",
        type=Path,
        metavar="FILE",
        help="the same from a COCO JSON: images by file name, classes by name",
    )


def positive(text: str) -> int:
    """For argparse: an integer from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no integer of 1 or more")
    return int(text)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def _formats(text: str) -> list[str]:
    formats = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise argparse.ArgumentTypeError(
            f"{unknown[0]!r} is no format; there are {','.join(FORMATS)}"
        )
    return formats


class SetupError(Exception):
    """Nothing can begin; the message says why, in one line."""


@contextmanager
def setting_up() -> Iterator[None]:
    """Turn what a wrong option, config or checkpoint raises into a :class:`SetupError`."""
    try:
        yield
    except (OSError, KeyError, ValueError, ImportError, AssertionError, yaml.YAMLError) as error:
        # AssertionError: how yacs refuses a KEY that does not exist
        raise SetupError(one_line(error)) from error


def model_of(args: argparse.Namespace) -> Callable[[], MaskFormerPredictor]:
    """The model that the options name, to be made when it is needed; a config is read now.

    Raises:
        OSError, KeyError, ValueError: the config will not do, or when it is made, the weights.
    """
    if args.config_file and not args.weights:
        device = ["MODEL.DEVICE", args.device] if args.device else []
        return partial(MaskFormerPredictor, load_cfg(args.config_file, [*args.opts, *device]))
    if not args.weights:
        logging.getLogger(__name__).info(
            f"Neither --weights nor --config-file: taking {PACKAGED}, the model of street scenes "
            "that comes with the code."
        )
    return partial(
        MaskFormerPredictor.from_pretrained,
        args.weights or PACKAGED,
        config_file=args.config_file,
        device=args.device,
        opts=args.opts,
    )


def kinds_of(
    args: argparse.Namespace, on: Sequence[str], drawn: bool
) -> tuple[list[str], list[str]]:
    """The kinds of results to draw, and those to make.

    Args:
        args: with ``kinds`` and ``save``.
        on: the kinds that the config turns on, the richest first.
        drawn: whether any are drawn.

    Raises:
        ValueError: there is none.
    """
    asked = list(dict.fromkeys(args.kinds or on[:1]))
    to_draw = asked if drawn else []
    whole = args.kinds or on if "npz" in args.save else []
    needed = [NEEDS[name] for name in args.save if name in NEEDS]
    kinds = list(dict.fromkeys([*to_draw, *whole, *needed]))
    if not kinds or (drawn and not to_draw):
        raise ValueError(
            "The config turns on no result: give --kinds, or set one of MODEL.MASK_FORMER.TEST."
            "{SEMANTIC,PANOPTIC,INSTANCE}_ON."
        )
    return to_draw, kinds


def predict_function(
    predictor: MaskFormerPredictor, args: argparse.Namespace, kinds: Sequence[str]
) -> Predict:
    """From images to results of these kinds, in the colours of ``--palette``."""
    classes = predictor.classes
    if classes.known_names is None:
        logging.getLogger(__name__).warning(
            f"Nothing names the model's {len(classes.names)} classes, neither its checkpoint nor a "
            "dataset of DATASETS.TRAIN or TEST with as many: they are called 'class 0' and so on."
        )
    if args.palette != "dataset":
        predictor.classes = classes.with_palette(args.palette)

    def predict(images: list[NDArray[np.uint8]]) -> list[Result]:
        return predictor(
            images,
            kinds=kinds,
            batch_size=args.batch_size,
            object_mask_threshold=args.confidence_threshold,
        )

    return predict


def dataset_ids_of(args: argparse.Namespace, predictor: MaskFormerPredictor) -> DatasetIds | None:
    """The ids of ``--dataset`` or ``--coco-json``, with a category for all that will be saved.

    Raises:
        KeyError, FileNotFoundError, ValueError: see :class:`DatasetIds`.
    """
    names, things = predictor.classes.names, predictor.classes.thing_ids
    if args.dataset:
        ids = DatasetIds.of_dataset(args.dataset)
    elif args.coco_json:
        ids = DatasetIds.of_json(args.coco_json, names)
    else:
        return None
    whole = "panoptic-coco" in args.save or not things
    ids.check_classes(range(len(names)) if whole else things, names)
    return ids
