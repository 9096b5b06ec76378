"""Do a config and its datasets fit each other, by their names and classes; no file is read."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..validation import OWN_ARCHITECTURES

__all__ = ["check_classes", "check_registered"]


def check_registered(cfg: CfgNode) -> None:
    """See that there are the datasets to train on, and those to evaluate on.

    Raises:
        ValueError: if ``DATASETS.TRAIN`` is empty.
        KeyError: for a name that is not registered; lists those that are near, or all.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError(
            "DATASETS.TRAIN is empty: name the datasets to train on, or give the files of your own "
            "data to tools/train_net.py (--train-images …)."
        )
    known = sorted(DatasetCatalog.list())
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in known:
                near = difflib.get_close_matches(name, known)
                raise KeyError(
                    f"DATASETS.{key} has {name!r}, which is not registered; "
                    f"{'near it' if near else 'known'}: {', '.join(near or known)}."
                )


def check_classes(cfg: CfgNode, datasets: Iterable[str]) -> None:
    """Compare a config with the metadata of datasets.

    Metadata that says nothing of classes, such as that of a user's own registration, is let pass:
    the mappers look at every label.

    Args:
        cfg: of one of this project's models; others are let pass.
        datasets: registered names.

    Raises:
        ValueError: if the number of classes is another, the ignore label is a class's id, or a
            per-pixel model ignores another label than the dataset has.
    """
    if cfg.MODEL.META_ARCHITECTURE not in OWN_ARCHITECTURES:
        return
    for name in dict.fromkeys(datasets):
        metadata = MetadataCatalog.get(name)
        _check_count(cfg, name, metadata)
        ignore_label = metadata.get("ignore_label")
        if ignore_label is not None:
            _check_ignore_label(cfg, name, ignore_label)


def _check_count(cfg: CfgNode, name: str, metadata: Any) -> None:
    lists = {key: metadata.get(key) for key in ("stuff_classes", "thing_classes")}
    counts = {key: len(names) for key, names in lists.items() if names}
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if counts and classes not in counts.values():
        found = " and ".join(f"{count} {key}" for key, count in counts.items())
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {classes}, but the dataset {name!r} has {found}: "
            f"set it to {' or '.join(str(count) for count in sorted(set(counts.values())))}, or "
            "name another dataset in DATASETS."
        )


def _check_ignore_label(cfg: CfgNode, name: str, ignore_label: int) -> None:
    head = cfg.MODEL.SEM_SEG_HEAD
    if 0 <= ignore_label < head.NUM_CLASSES:
        raise ValueError(
            f"The dataset {name!r} has the ignore_label {ignore_label}, which is a class id, for "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}: pixels of that class would not "
            f"be learnt from. Set ignore_label in the dataset's metadata to {head.NUM_CLASSES} or "
            "more (65535 in 16-bit label maps), and those pixels with it."
        )
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor" and ignore_label != head.IGNORE_VALUE:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but the dataset {name!r} has "
            f"the ignore_label {ignore_label}: the loss of {head.NAME} would take those pixels for "
            f"a class. Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to {ignore_label}."
        )
