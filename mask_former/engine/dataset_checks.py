"""Check a config's datasets before the first training step.

The checks compare names and classes with the config, look for all files, and read a sample of them.
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts

from mask_former.config.idle_keys import OWN_ARCHITECTURES
from mask_former.data.checking import check_image, classes_of_dataset, evenly_spaced
from mask_former.data.formats.readers import read_image
from mask_former.data.mappers.base import TrainingMapper
from mask_former.structures import Record
from mask_former.utils.errors import message_of
from mask_former.utils.web import is_url

__all__ = ["check_classes", "check_registered", "checked_training_set"]

SAMPLE = 20
"""Number of images that are read from each dataset."""
FILE_KEYS = ("file_name", "pan_seg_file_name", "sem_seg_file_name")
ADVICE = "tools/check_dataset.py checks every file; DATASETS.CHECK 'off' skips this check."


def check_registered(cfg: CfgNode, splits: Sequence[str] = ("TRAIN", "TEST")) -> None:
    """Check that the config's datasets are registered.

    Args:
        cfg: Config with ``DATASETS``.
        splits: Keys of ``DATASETS`` to check.

    Raises:
        ValueError: If ``DATASETS.TRAIN`` is to be checked and is empty.
        KeyError: If a name is not registered. The message lists similar names, or all.
    """
    if "TRAIN" in splits and not cfg.DATASETS.TRAIN:
        raise ValueError(
            "DATASETS.TRAIN is empty: name the datasets to train on, or give the files of your own "
            "dataset to tools/train_net.py (--train-images …)."
        )
    known = sorted(DatasetCatalog.list())
    for key in splits:
        for name in cfg.DATASETS[key]:
            if name not in known:
                near = difflib.get_close_matches(name, known)
                raise KeyError(
                    f"DATASETS.{key} has {name!r}, which is not registered; "
                    f"{'similar' if near else 'registered'}: {', '.join(near or known)}."
                )


def check_classes(cfg: CfgNode, datasets: Iterable[str]) -> None:
    """Check that the classes of a config match the metadata of datasets.

    Metadata without classes, for example of a dataset that a user registered, is accepted, because
    the mappers check every label.

    Args:
        cfg: Config; only those of this project's models are checked.
        datasets: Names of registered datasets.

    Raises:
        ValueError: If the number of classes differs, the ignore label is a class id, or the
            ignore labels of a per-pixel model and of the dataset differ.
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
            f"The dataset {name!r} has the ignore_label {ignore_label}, which is a class id, "
            f"because MODEL.SEM_SEG_HEAD.NUM_CLASSES is {head.NUM_CLASSES}: training would skip "
            "the pixels of that class. Set ignore_label in the dataset's metadata to "
            f"{head.NUM_CLASSES} or more (65535 in 16-bit label maps), and give that label to the "
            "pixels to ignore."
        )
    if cfg.MODEL.META_ARCHITECTURE == "SemanticSegmentor" and ignore_label != head.IGNORE_VALUE:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {head.IGNORE_VALUE}, but the dataset {name!r} has "
            f"the ignore_label {ignore_label}: the loss of {head.NAME} would treat those pixels as "
            f"a class. Set MODEL.SEM_SEG_HEAD.IGNORE_VALUE to {ignore_label}."
        )


def checked_training_set(cfg: CfgNode, mapper: Any) -> Sequence[Record] | None:
    """Load the dicts of ``DATASETS.TRAIN``, and check them and those of ``DATASETS.TEST``.

    All files must exist. From each dataset, 20 evenly spaced images and their annotations are read:
    training data as the mapper reads them, test data according to the classes in the dataset's
    metadata. The check takes seconds, and draws no random numbers.

    Args:
        cfg: Config with ``DATASETS.CHECK`` "quick" or "off".
        mapper: Mapper of the training set.

    Returns:
        The training dicts, for the argument ``dataset`` of ``build_detection_train_loader``; None
        if nothing was checked.

    Raises:
        FileNotFoundError: If files are missing.
        ValueError: If the sample has errors, or ``DATASETS.CHECK`` has another value.
    """
    if cfg.DATASETS.CHECK not in ("quick", "off"):
        raise ValueError(f"DATASETS.CHECK is {cfg.DATASETS.CHECK!r}, expected 'quick' or 'off'.")
    if cfg.DATASETS.CHECK == "off":
        return None
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records: Any = get_detection_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=filter_empty)
    if isinstance(records, list):
        _check(records, "DATASETS.TRAIN", partial(_mapper_errors, mapper))
    for name in cfg.DATASETS.TEST:
        tested: Any = DatasetCatalog.get(name)
        if isinstance(tested, list) and tested:
            _check(tested, f"DATASETS.TEST, {name!r}", _evaluation_errors(name, tested[0]))
    return records


def _check(records: Sequence[Record], where: str, errors_of: Callable[[Record], list[str]]) -> None:
    missing = list(_missing_files(records))
    if missing:
        raise FileNotFoundError(
            f"{where}: {len(missing)} files are missing, among them {', '.join(missing[:3])}. "
            f"Restore them, or remove them from the dataset. {ADVICE}"
        )
    chosen = evenly_spaced(records, SAMPLE)
    errors = [error for record in chosen for error in errors_of(record)[:1]]
    if errors:
        raise ValueError(
            f"{where}: {len(errors)} of the {len(chosen)} checked images have errors. "
            f"{' '.join(errors[:3])} {ADVICE}"
        )
    logging.getLogger(__name__).info(
        f"{where}: the files of {len(records)} images exist; the {len(chosen)} checked images have "
        "no errors."
    )


def _missing_files(records: Iterable[Record]) -> Iterator[str]:
    """Yield the local files that are missing; each folder is listed only once."""
    listed: dict[Path, set[str]] = {}
    for record in records:
        for file in (record[key] for key in FILE_KEYS if key in record):
            if is_url(file):  # a remote file, which detectron2's PathManager reads
                continue
            folder, name = Path(file).parent, Path(file).name
            if folder not in listed:
                listed[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
            if name not in listed[folder]:
                yield file


def _mapper_errors(mapper: Any, record: Record) -> list[str]:
    """Return the mapper's error, if any, without augmentation, which would draw random numbers."""
    if not isinstance(mapper, TrainingMapper):
        return []  # a custom mapper: the files that it reads are unknown
    try:
        image = read_image(record["file_name"], "file_name", mapper.image_format)
        mapper.read_annotations(record, image)
    except (FileNotFoundError, KeyError, ValueError) as error:
        return [message_of(error)]
    return []


def _evaluation_errors(name: str, first: Record) -> Callable[[Record], list[str]]:
    """Return a function that checks images of a dataset, as far as its metadata allows."""
    try:
        classes = classes_of_dataset(name, first)
    except ValueError as error:  # a custom evaluator may not need the metadata
        logging.getLogger(__name__).warning(f"The annotations are not checked: {error}")
        return lambda record: []

    def errors(record: Record) -> list[str]:
        findings = check_image(record, classes).findings
        return [finding.message for finding in findings if finding.is_error]

    return errors
