"""Connect a config with its datasets: register a user's tables, derive keys from the data."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from .catalog import check_dataset_exists, read_table, register

__all__ = ["fitting_keys", "register_own_tables", "use_datasets"]

_FITTING = {
    "sem_seg": ("mask_former_semantic", "mask_former_semantic_lsj", "SEMANTIC_ON"),
    "coco_panoptic_seg": ("mask_former_panoptic", "coco_panoptic_lsj", "PANOPTIC_ON"),
    "coco": ("mask_former_instance", "coco_instance_lsj", "INSTANCE_ON"),
}
"""The mapper, that with large-scale jitter, and the key that enables the result to evaluate, by
``evaluator_type``."""


def register_own_tables(cfg: CfgNode) -> None:
    """Register the datasets of the tables in ``DATASETS.TABLES``; paths are relative to the table.

    Raises:
        FileNotFoundError: if a table is missing.
        ValueError: if a file is not a table, or the name of one of its datasets is taken.
    """
    logger = logging.getLogger(__name__)
    for name in cfg.DATASETS.TABLES:
        path = Path(name).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"DATASETS.TABLES names {name}, which is missing: restore the table, or remove it "
                "from the key (DATASETS.TABLES '()')."
            )
        table = read_table(path)
        register(table, path.parent.absolute())
        logger.info(
            f"{', '.join(table.datasets)}: {len(table.categories)} classes "
            f"({', '.join(table.names[:8])}{', …' if len(table.names) > 8 else ''}), from {path}."
        )
    if cfg.DATASETS.TABLES and not cfg.DATASETS.TEST:
        logger.info("DATASETS.TEST is empty: nothing will be evaluated.")


def fitting_keys(
    train: Sequence[str], test: Sequence[str] = (), mapper: str = ""
) -> dict[str, Any]:
    """Derive config keys from the data: datasets, classes, mapper and evaluated result.

    Args:
        train: names of registered training datasets, all of one kind.
        test: names of registered test datasets of the same kind; may be empty.
        mapper: the config's mapper: one with large-scale jitter is replaced by one with it.

    Returns:
        Full names of keys and their values, such as ``{"MODEL.SEM_SEG_HEAD.NUM_CLASSES": 11}``.

    Raises:
        KeyError: if a dataset is not registered.
        ValueError: if no mapper of this package fits the kind of dataset, or the datasets differ in
            kind or classes.
    """
    described = {name: _describe(name) for name in (*train, *test)}
    kind, classes, ignore_label = described[train[0]]
    for name, found in described.items():
        if found != described[train[0]]:
            raise ValueError(
                f"The datasets {train[0]!r} and {name!r} cannot be combined: their evaluator_type, "
                f"classes and ignore label are {described[train[0]]} and {found}, but must agree."
            )
    plain, jittering, result_key = _FITTING[kind]
    has_jitter = mapper in (entry[1] for entry in _FITTING.values())
    return {
        "DATASETS.TRAIN": list(train),
        "DATASETS.TEST": list(test),
        "INPUT.DATASET_MAPPER_NAME": jittering if has_jitter else plain,
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(classes),
        "MODEL.SEM_SEG_HEAD.IGNORE_VALUE": ignore_label,
        f"MODEL.MASK_FORMER.TEST.{result_key}": True,
    }


def _describe(name: str) -> tuple[str, tuple[str, ...], int]:
    check_dataset_exists(name)
    metadata = MetadataCatalog.get(name)
    kind = metadata.get("evaluator_type")
    if kind not in _FITTING:
        raise ValueError(
            f"The dataset {name!r} has the evaluator_type {kind!r}; expected one of "
            f"{sorted(_FITTING)}."
        )
    classes = metadata.get("thing_classes" if kind == "coco" else "stuff_classes")
    return kind, tuple(classes), metadata.get("ignore_label", 255)


def use_datasets(cfg: CfgNode, train: Sequence[str], test: Sequence[str] = ()) -> None:
    """Set the keys of ``fitting_keys`` in ``cfg``; other keys stay unchanged."""
    for key, value in fitting_keys(train, test, cfg.INPUT.DATASET_MAPPER_NAME).items():
        cfg.merge_from_list([key, value])
