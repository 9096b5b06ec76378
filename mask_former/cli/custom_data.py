"""Arguments of a command for your own dataset, and its conversion to a table and config keys."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mask_former.config.loading import read_cfg
from mask_former.data.datasets.catalog import Table, register_table
from mask_former.data.datasets.config_keys import fitting_keys
from mask_former.data.datasets.custom import Annotated, json_table, semantic_table, write_table

__all__ = ["CustomData", "add_custom_data_arguments", "use_custom_data"]

_SPLITS = ("train", "val")
_HELP = {
    "images": "folder of images",
    "labels": "folder of label maps (PNG, one class id per pixel) with the images' names",
    "json": "annotations in COCO's instance or panoptic format",
    "panoptic": "folder of the PNGs that a panoptic JSON names",
}


@dataclass(frozen=True)
class CustomData:
    """Files and folders of a custom dataset; see :func:`add_custom_data_arguments`."""

    train_images: str | None = None
    train_labels: str | None = None
    train_json: str | None = None
    train_panoptic: str | None = None
    val_images: str | None = None
    val_labels: str | None = None
    val_json: str | None = None
    val_panoptic: str | None = None
    classes: str | None = None
    ignore_label: int | None = None
    name: str = "custom"

    def given(self) -> list[str]:
        """Return the arguments that were given, without ``--name``, such as ``--train-images``."""
        names = [name for name, value in vars(self).items() if value is not None and name != "name"]
        return [f"--{name.replace('_', '-')}" for name in names]


def add_custom_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an argument for each field of :class:`CustomData`."""
    group = parser.add_argument_group(
        "your own dataset", "instead of DATASETS.TRAIN and TEST; see docs/own_data.md"
    )
    for split in _SPLITS:
        for part, text in _HELP.items():
            group.add_argument(f"--{split}-{part}", metavar="PATH", help=text)
    group.add_argument("--classes", metavar="FILE", help="class names of label maps, one per line")
    group.add_argument("--ignore-label", type=int, help="pixel value without class (default: 255)")
    group.add_argument(
        "--name",
        default="custom",
        help="the datasets' name: NAME_train, NAME_val (default: custom)",
    )


def use_custom_data(
    data: CustomData, config_file: str, opts: Sequence[str], *, evaluation: bool
) -> list[str]:
    """Register a custom dataset.

    Its table is written to ``OUTPUT_DIR/NAME_table.json`` and named by ``DATASETS.TABLES``, so that
    every process of the job, and every later command on the resulting config, registers it again.

    Args:
        data: The dataset; nothing is registered if it is empty.
        config_file: Path of the config.
        opts: ``KEY VALUE …`` of the command line.
        evaluation: True if the command only evaluates.

    Returns:
        Keys that fit the data, followed by ``opts``, which take precedence.

    Raises:
        FileNotFoundError: If a folder or file is missing.
        ValueError: If neither ``data`` nor the config names training data, an argument is missing
            or contradicts another one, or the annotations or classes are wrong.
    """
    given = data.given()
    cfg = read_cfg(config_file, opts)
    if not given:
        if not (cfg.DATASETS.TRAIN or evaluation):
            raise ValueError(
                f"{config_file}: DATASETS.TRAIN is empty. Name registered datasets in it, or "
                "give --train-images with --train-labels or --train-json (see docs/own_data.md)."
            )
        return list(opts)
    _check_arguments(data, given)
    # An evaluation must not replace the table of the training run in the same folder.
    file_name = f"{data.name}{'_eval' if evaluation else ''}_table.json"
    table = _table(data, Path(cfg.OUTPUT_DIR).absolute() / file_name)
    write_table(table)
    register_table(table.path)
    train, *val = table.datasets
    keys = fitting_keys([train], val, cfg.INPUT.DATASET_MAPPER_NAME)
    keys |= {"DATASETS.TABLES": [str(table.path)]}
    return [*(str(word) for pair in keys.items() for word in pair), *opts]


def _check_arguments(data: CustomData, given: list[str]) -> None:
    def need(argument: str, why: str) -> None:
        if argument not in given:
            raise ValueError(f"{argument} is missing: {why}. Given: {' '.join(given)}.")

    def refuse(argument: str, why: str) -> None:
        if argument in given:
            raise ValueError(f"{argument} does not fit: {why}. Given: {' '.join(given)}.")

    if not re.fullmatch(r"[\w.-]+", data.name):
        raise ValueError(f"--name {data.name!r}: expected letters, digits, '_', '.' or '-'.")
    if "--train-json" not in given:
        need("--train-labels", "training needs label maps, or annotations in --train-json")
    has_json = "--train-labels" not in given
    need("--train-images", "training needs images")
    if has_json:
        for argument in ("--classes", "--ignore-label", "--val-labels"):
            refuse(argument, "with --train-json, classes and annotations come from JSON files")
    else:
        need("--classes", "label maps do not contain class names; give a file with one per line")
        for argument in ("--train-json", "--train-panoptic", "--val-json", "--val-panoptic"):
            refuse(argument, "the annotations are the label maps of --train-labels")
    annotations = "--val-json" if has_json else "--val-labels"
    parts = ["--val-images", annotations]
    if "--train-panoptic" in given:
        parts.append("--val-panoptic")
    if any(argument.startswith("--val-") for argument in given):
        for argument in parts:
            need(argument, f"evaluation needs {' and '.join(parts)}")


def _table(data: CustomData, path: Path) -> Table:
    train = data.train_images, data.train_labels, data.train_json, data.train_panoptic
    val = data.val_images, data.val_labels, data.val_json, data.val_panoptic
    datasets = {
        f"{data.name}_{split}": Annotated(images, labels, json_file, panoptic)
        for split, (images, labels, json_file, panoptic) in zip(_SPLITS, (train, val), strict=True)
        if images is not None
    }
    if data.train_json is not None:
        return json_table(datasets, path=path)
    assert data.classes is not None
    return semantic_table(datasets, data.classes, ignore_label=data.ignore_label, path=path)
