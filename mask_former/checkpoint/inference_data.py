"""What a checkpoint carries for inference: the model's config and classes, as plain data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from mask_former.config.validation import OF_BOXES
from mask_former.data.datasets.classes import Classes
from mask_former.utils.weight_files import INFERENCE

__all__ = [
    "InferenceData",
    "are_named",
    "classes_of",
    "inference_data",
    "inference_settings",
    "read_inference_data",
    "trained_classes",
]

_KEPT = {
    "DATASETS": ("TRAIN", "TEST"),  # names, which need not be registered
    "INPUT": ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST"),
}
"""All that is carried of these groups of keys."""

_LEFT_OUT = (
    # training's
    "DATALOADER",
    "LOGGERS",
    "MODEL.EMA",
    "MODEL.FREEZE",
    "MODEL.MASK_FORMER.FINETUNE",
    "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM",
    "MODEL.MASK_FORMER.LOSSES",
    "SEED",
    "SOLVER",
    "VIS_PERIOD",
    # the evaluation's
    "TEST.BEST_METRIC",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "TEST.PRECISE_BN",
    "TEST.SAVE_PREDICTIONS",
    "TEST.VAL_LOSS",
    # the machine's
    "CUDNN_BENCHMARK",
    "FLOAT32_PRECISION",
    "GLOBAL",
    "MODEL.ACTIVATION_CHECKPOINTING",
    "MODEL.COMPILE",
    "MODEL.DEVICE",
    "MODEL.REFERENCE_OPS",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    *(f"MODEL.{name}" for name in OF_BOXES),
)
"""Keys and groups of keys that are not carried: inference does not read them, and some hold paths
of the machine that trained. Other keys are, those of plug-ins among them."""


@dataclass(frozen=True)
class InferenceData:
    """What a checkpoint carries for inference."""

    settings: dict[str, Any]
    """Of a config, as :func:`inference_settings` leaves them."""
    classes: Classes


def inference_data(cfg: CfgNode, classes: Classes | None = None) -> dict[str, Any]:
    """The ``inference`` entry of a checkpoint.

    Args:
        cfg: of the model.
        classes: of the model; None: those of the metadata of its training data.

    Returns:
        ``config`` (YAML text) and ``classes`` (a dict of ``name``, ``color``, ``isthing`` each).
    """
    classes = classes or trained_classes(cfg)
    text = yaml.safe_dump(inference_settings(cfg), default_flow_style=None)
    return {"config": text, "classes": classes.to_data()}


def trained_classes(cfg: CfgNode) -> Classes:
    """The classes that a config trains, from the metadata of the first dataset that has as many."""
    count = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    datasets = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for metadata in (*map(MetadataCatalog.get, datasets), {}):
        classes = Classes.from_metadata(metadata, count)
        if are_named(classes):
            break
    return classes


def classes_of(cfg: CfgNode) -> Classes:
    """Names and colours, from the metadata of the config's dataset."""
    dataset = next(iter((*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN)), "")
    metadata, num_classes = MetadataCatalog.get(dataset), cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    named = metadata.get("stuff_classes", None) or metadata.get("thing_classes", None)
    classes = Classes.from_metadata(metadata, num_classes)
    if named and classes.names[0] == "class 0":
        logging.getLogger(__name__).warning(
            f"The dataset {dataset!r} has {len(named)} classes, the model has {num_classes}: they "
            "are drawn without names. DATASETS.TEST says whose names to take."
        )
    return classes


def are_named(classes: Classes) -> bool:
    """Whether the classes have names of their own, not "class 0" and so on."""
    return classes.names != [f"class {i}" for i in range(len(classes.names))]


def inference_settings(cfg: CfgNode) -> dict[str, Any]:
    """The values of a config that inference reads, as plain data."""
    return _without_the_rest(yaml.safe_load(cfg.dump()))


def _without_the_rest(settings: dict[str, Any]) -> dict[str, Any]:
    for key in _LEFT_OUT:
        *groups, name = key.split(".")
        node: Any = settings
        for group in groups:
            node = node.get(group) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(name, None)
    for group, kept in _KEPT.items():
        node = settings.get(group)
        if isinstance(node, dict):
            settings[group] = {key: node[key] for key in kept if key in node}
    return settings


def read_inference_data(extras: Mapping[str, Any], source: str) -> InferenceData | None:
    """The entry of a checkpoint, checked; None where it has none.

    Args:
        extras: what the checkpoint holds beside the weights.
        source: its name, for the error.

    Raises:
        ValueError: if the entry is broken, or not ours.
    """
    entry = extras.get(INFERENCE)
    if entry is None:
        return None
    try:
        if not isinstance(entry, Mapping):
            raise ValueError(f"it is a {type(entry).__name__}, not 'config' and 'classes'")
        settings = yaml.safe_load(entry["config"])
        if not isinstance(settings, dict) or not isinstance(settings.get("MODEL"), dict):
            raise ValueError("'config' is no YAML with a MODEL")
        return InferenceData(_without_the_rest(settings), Classes.from_data(entry["classes"]))
    except (AttributeError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{source}: its {INFERENCE!r} entry, which should hold the model's config and classes, "
            f"is broken: {' '.join(reason.split())[:300]}. Give the config that it was trained "
            "with: config_file=."
        ) from error
