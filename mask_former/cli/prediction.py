"""Set up the predictor, the results and their ids from the arguments of a command."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from mask_former.config.loading import load_cfg
from mask_former.data.datasets.classes import Classes
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.registries import load_plugins
from mask_former.results import Result

from .dataset_ids import DatasetIds
from .options import PACKAGED, ModelArguments, ResultArguments
from .run import Predict

__all__ = ["choose_kinds", "dataset_ids", "model_loader", "predict_function"]

_NEEDS = {"semantic-png": "semantic", "panoptic-coco": "panoptic", "instances-coco": "instance"}
"""Kind of result that each of these formats needs."""


def model_loader(model: ModelArguments) -> Callable[[], MaskFormerPredictor]:
    """Import the plug-ins, read the config, and return a function that loads the model.

    Raises:
        OSError, KeyError, ValueError: If a plug-in or the config is wrong. The returned function
            raises them if the weights are wrong.
    """
    load_plugins(model.plugins)
    if model.config_file and not model.weights:
        device = ["MODEL.DEVICE", model.device] if model.device else []
        return partial(MaskFormerPredictor, load_cfg(model.config_file, [*model.opts, *device]))
    if not model.weights:
        logging.getLogger(__name__).info(
            f"Neither --weights nor --config-file is given: using {PACKAGED}, the model of street "
            "scenes that comes with the code."
        )
    return partial(
        MaskFormerPredictor.from_pretrained,
        model.weights or PACKAGED,
        config_file=model.config_file,
        device=model.device,
        opts=model.opts,
    )


def choose_kinds(
    results: ResultArguments, enabled: Sequence[str], draw: bool
) -> tuple[list[str], list[str]]:
    """Choose the kinds of results to draw, and those to compute.

    Args:
        results: Arguments of the command, with ``kinds`` and ``save``.
        enabled: Kinds that the config turns on, in the order panoptic, instance, semantic.
        draw: True if results are drawn.

    Raises:
        ValueError: If there is nothing to draw or to compute.
    """
    to_draw = list(dict.fromkeys(results.kinds or enabled[:1])) if draw else []
    for_npz = results.kinds or enabled if "npz" in results.save else []
    needed = [_NEEDS[name] for name in results.save if name in _NEEDS]
    kinds = list(dict.fromkeys([*to_draw, *for_npz, *needed]))
    if not kinds or (draw and not to_draw):
        raise ValueError(
            "The config turns on no result: give --kinds, or set one of MODEL.MASK_FORMER.TEST."
            "{SEMANTIC,PANOPTIC,INSTANCE}_ON."
        )
    return to_draw, kinds


def predict_function(
    predictor: MaskFormerPredictor,
    kinds: Sequence[str],
    results: ResultArguments,
    batch_size: int,
) -> Predict:
    """Return a function from images to results of these kinds, in the colours of ``--palette``."""
    if predictor.classes.known_names is None:
        logging.getLogger(__name__).warning(
            f"The names of the model's {len(predictor.classes.names)} classes are unknown: neither "
            "its checkpoint nor a dataset of DATASETS.TRAIN or TEST with as many classes has them. "
            "They are called 'class 0' and so on."
        )
    classes = predictor.classes.with_palette(results.palette)

    def predict(images: list[NDArray[np.uint8]]) -> list[Result]:
        found = predictor(
            images,
            kinds=kinds,
            batch_size=batch_size,
            object_mask_threshold=results.confidence_threshold,
        )
        return [replace(result, classes=classes) for result in found]

    return predict


def dataset_ids(results: ResultArguments, classes: Classes) -> DatasetIds | None:
    """Read the ids of ``--dataset`` or ``--coco-json``; None if neither is given.

    Raises:
        KeyError, FileNotFoundError, ValueError: See :class:`DatasetIds`; also if a class that will
            be saved has no id.
    """
    if results.dataset:
        ids = DatasetIds.of_dataset(results.dataset)
    elif results.coco_json:
        ids = DatasetIds.of_json(results.coco_json, classes.names)
    else:
        return None
    all_saved = "panoptic-coco" in results.save or not classes.thing_ids
    ids.check_classes(range(len(classes.names)) if all_saved else classes.thing_ids, classes.names)
    return ids
