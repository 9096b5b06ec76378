"""The part of a checkpoint that inference reads: the model's config and classes, as plain data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from mask_former.config.idle_keys import BOX_MODEL_NODES
from mask_former.data.datasets.classes import Classes
from mask_former.registries import loaded_plugins
from mask_former.utils.bounded_files import parse_yaml
from mask_former.utils.weight_files import INFERENCE

__all__ = [
    "InferenceData",
    "classes_of",
    "inference_data",
    "inference_settings",
    "plain_settings",
    "read_inference_data",
]

_KEPT = {
    "DATASETS": ("TRAIN", "TEST"),  # names; they need not be registered for inference
    "INPUT": ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST"),
}
"""The only keys that are stored of these groups."""

_LEFT_OUT = (
    # training
    "DATALOADER",
    "LOGGERS",
    "MODEL.EMA",
    "MODEL.EOMT.ANNEALING",
    "MODEL.FREEZE",
    "MODEL.MASK_FORMER.FINETUNE",
    "MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM",
    "MODEL.MASK_FORMER.CRITERION_NAME",
    "MODEL.MASK_FORMER.LOSSES",
    "MODEL.MASK_FORMER.MASK_TERM",
    "MODEL.MASK_FORMER.MATCHER.NAME",
    "MODEL.MASK_FORMER.POINT_PADDING",
    "MODEL.MASK_FORMER.POINT_TARGETS",
    "SEED",
    "SOLVER",
    "VIS_PERIOD",
    # evaluation
    "TEST.BEST_METRIC",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.KEYPOINT_OKS_SIGMAS",
    "TEST.PRECISE_BN",
    "TEST.SAVE_PREDICTIONS",
    "TEST.VAL_LOSS",
    # the machine
    "CUDNN_BENCHMARK",
    "FLOAT32_PRECISION",
    "GLOBAL",
    "MODEL.ACTIVATION_CHECKPOINTING",
    "MODEL.COMPILE",
    "MODEL.DEVICE",
    "MODEL.REFERENCE_OPS",
    "MODEL.SWIN.USE_CHECKPOINT",
    "MODEL.WEIGHTS",
    "OUTPUT_DIR",
    *(f"MODEL.{name}" for name in BOX_MODEL_NODES),
)
"""Keys and groups of keys that are not stored: inference does not read them, and some hold paths of
the machine that trained. All other keys are stored, including those of plug-ins."""


@dataclass(frozen=True)
class InferenceData:
    """The model's config and classes, as a checkpoint stores them."""

    settings: dict[str, Any]
    """Values of the config, as :func:`inference_settings` returns them."""
    classes: Classes
    plugins: tuple[str, ...] = ()
    """File names of the plug-ins that were loaded when the checkpoint was written."""


def inference_data(cfg: CfgNode, classes: Classes | None = None) -> dict[str, Any]:
    """Build the ``inference`` entry of a checkpoint.

    Args:
        cfg: The model's config.
        classes: The model's classes. Default: see :func:`classes_of`.

    Returns:
        ``config`` (YAML text), ``classes`` (a dict of ``name``, ``color`` and ``isthing`` for each
        class) and, if any are loaded, ``plugins`` (file names).
    """
    classes = classes or classes_of(cfg)
    text = yaml.safe_dump(inference_settings(cfg), default_flow_style=None)
    names = [file.name for file in loaded_plugins()]
    plugins = {"plugins": names} if names else {}
    return {"config": text, "classes": classes.to_data(), **plugins}


def classes_of(cfg: CfgNode, names: Sequence[str] | None = None) -> Classes:
    """Return the classes that a config's model predicts; the whole package uses this function.

    They come from the metadata of the first dataset in ``DATASETS.TRAIN`` and ``DATASETS.TEST``
    that names K classes, where K is ``MODEL.SEM_SEG_HEAD.NUM_CLASSES``.

    Args:
        cfg: The model's config.
        names: Class names in the model's checkpoint, used if no dataset names K classes.

    Returns:
        The K classes, called "class 0" and so on if nothing names them.
    """
    count, other_counts = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, {}
    for dataset in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(dataset)
        classes = Classes.from_metadata(metadata, count)
        if classes.known_names is not None:
            return classes
        if listed := metadata.get("stuff_classes") or metadata.get("thing_classes"):
            other_counts[dataset] = len(listed)
    unnamed = Classes.from_metadata({}, count)
    if names is not None and len(names) == count:
        return replace(unnamed, names=list(names))
    if other_counts:
        logging.getLogger(__name__).warning(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {count}, but the datasets have other numbers of "
            f"classes ({other_counts}): the classes have no names."
        )
    return unnamed


def inference_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the values of a config that inference reads, as plain data."""
    return _keep_inference_keys(plain_settings(cfg))


def plain_settings(cfg: CfgNode) -> dict[str, Any]:
    """Return the values of a config as plain data, as reading its YAML text would."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(entry) for key, entry in value.items()}
        return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value

    return {key: plain(entry) for key, entry in cfg.items()}


def _keep_inference_keys(settings: dict[str, Any]) -> dict[str, Any]:
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
    """Read and check the ``inference`` entry of a checkpoint.

    Args:
        extras: Everything in the checkpoint except the weights.
        source: Name of the checkpoint, for the error message.

    Returns:
        The config and classes; None if the checkpoint has no such entry.

    Raises:
        ValueError: If the entry is damaged, or was not written by this package.
    """
    entry = extras.get(INFERENCE)
    if entry is None:
        return None
    try:
        if not isinstance(entry, Mapping):
            raise ValueError(f"it is a {type(entry).__name__}, not 'config' and 'classes'")
        settings = parse_yaml(entry["config"], "'config'")
        if not isinstance(settings, dict) or not isinstance(settings.get("MODEL"), dict):
            raise ValueError("'config' is not a YAML text with the key MODEL")
        plugins = entry.get("plugins", [])
        if not isinstance(plugins, list) or not all(isinstance(name, str) for name in plugins):
            raise ValueError("'plugins' is not a list of file names")
        classes = Classes.from_data(entry["classes"])
        return InferenceData(_keep_inference_keys(settings), classes, tuple(plugins))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise ValueError(
            f"{source}: its {INFERENCE!r} entry, which should hold the model's config and classes, "
            f"is damaged: {' '.join(reason.split())[:300]}. Name the config that the model was "
            "trained with: config_file=."
        ) from error
