"""Before the first step: are the files of the data there, and is a sample of them sound.

`dataset_checks` compares names and classes; here files are read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, get_detection_dataset_dicts

from ..data.checking import Record, check_image, classes_of_dataset
from ..data.mappers.base import TrainingMapper
from ..data.mappers.readers import read_image
from ..errors import message_of

__all__ = ["checked_training_set"]

SAMPLE = 20
"""How many images of a dataset are read."""
FILE_KEYS = ("file_name", "pan_seg_file_name", "sem_seg_file_name")
FULL = "tools/check_dataset.py checks every file; DATASETS.CHECK 'off' checks none."


def checked_training_set(cfg: CfgNode, mapper: Any) -> Sequence[Record] | None:
    """Load the dicts of `DATASETS.TRAIN`, and check them and those of `DATASETS.TEST`.

    Of all images the files have to be there; of 20 a dataset, spread evenly, the image and its
    annotations are read: in training as the mapper reads them, in testing against the classes of
    the dataset's metadata. It takes seconds, and no random numbers.

    Args:
        cfg: with `DATASETS.CHECK` "quick" or "off".
        mapper: of the training set.

    Returns:
        what `build_detection_train_loader` takes as `dataset`; None where nothing was checked.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: the sample is not sound, or `DATASETS.CHECK` has another value.
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
            f"{where}: {len(missing)} files are not there, among them {', '.join(missing[:3])}. "
            f"Restore them, or take them out of the dataset. {FULL}"
        )
    chosen = np.linspace(0, len(records) - 1, min(SAMPLE, len(records))).round().astype(int)
    errors = [error for i in chosen for error in errors_of(records[i])[:1]]
    if errors:
        raise ValueError(
            f"{where}: {len(errors)} of {len(chosen)} images that were looked at are not as they "
            f"should be. {' '.join(errors[:3])} {FULL}"
        )
    logging.getLogger(__name__).info(
        f"{where}: the files of {len(records)} images are there; of the {len(chosen)} that were "
        "looked at, all is well."
    )


def _missing_files(records: Iterable[Record]) -> Iterator[str]:
    """Those local files that are not there; a folder is listed once, however many it holds."""
    listed: dict[Path, set[str]] = {}
    for record in records:
        for file in (record[key] for key in FILE_KEYS if key in record):
            if "://" in file:  # another place, which detectron2's PathManager knows how to reach
                continue
            folder, name = Path(file).parent, Path(file).name
            if folder not in listed:
                listed[folder] = set(os.listdir(folder)) if folder.is_dir() else set()
            if name not in listed[folder]:
                yield file


def _mapper_errors(mapper: Any, record: Record) -> list[str]:
    """What the mapper would stop at; augmentation, which draws random numbers, is left out."""
    if not isinstance(mapper, TrainingMapper):
        return []  # a user's own: what it reads is not known
    try:
        image = read_image(record["file_name"], "file_name", mapper.image_format)
        mapper.read_annotations(record, image)
    except (FileNotFoundError, KeyError, ValueError) as error:
        return [message_of(error)]
    return []


def _evaluation_errors(name: str, first: Record) -> Callable[[Record], list[str]]:
    """A function that checks the images of a dataset by its metadata, as far as it has any."""
    try:
        classes = classes_of_dataset(name, first)
    except ValueError as error:  # evaluators of a user's own may do without
        logging.getLogger(__name__).warning(f"The annotations are not checked: {error}")
        return lambda record: []

    def errors(record: Record) -> list[str]:
        findings = check_image(record, classes).findings
        return [finding.message for finding in findings if finding.is_error]

    return errors
