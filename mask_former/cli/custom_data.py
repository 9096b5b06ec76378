"""Own data as arguments of a command: folders and files become a table and the keys that fit it."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from mask_former.config.loading import read_cfg
from mask_former.data.datasets.catalog import Table, register_table
from mask_former.data.datasets.config_keys import fitting_keys
from mask_former.data.datasets.custom import Annotated, json_table, semantic_table, write_table

__all__ = ["add_arguments", "use_own_data"]

_SPLITS = ("train", "val")
_HELP = {
    "images": "folder of images",
    "labels": "folder of label maps (PNG, a class at each pixel) of the images' names",
    "json": "annotations in COCO's instance or panoptic format",
    "panoptic": "folder of the PNGs that a panoptic JSON names",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`use_own_data` reads."""
    group = parser.add_argument_group(
        "own data", "instead of DATASETS.TRAIN and TEST; see docs/own_data.md"
    )
    for split in _SPLITS:
        for what, text in _HELP.items():
            group.add_argument(f"--{split}-{what}", metavar="PATH", help=text)
    group.add_argument("--classes", metavar="FILE", help="class names, one a line; of label maps")
    group.add_argument("--ignore-label", type=int, help="pixel value of no class (default: 255)")
    group.add_argument(
        "--name",
        default="custom",
        help="the datasets' name: NAME_train, NAME_val (default: custom)",
    )


def use_own_data(args: argparse.Namespace) -> None:
    """Register the data that ``args`` names and put the keys that fit it before ``args.opts``.

    The table is written to ``OUTPUT_DIR/NAME_table.json`` and named by ``DATASETS.TABLES``, so that
    every process of the job, and every later command on the resulting config, registers it again.
    Nothing happens where ``args`` names no data and the config does.

    Raises:
        FileNotFoundError: a folder or file is not there.
        ValueError: there is nothing to train on, an argument is missing or does not go with another
            one, or the annotations or classes are wrong.
    """
    given = [f"--{key.replace('_', '-')}" for key in _data_arguments(args)]
    cfg = read_cfg(args.config_file, args.opts)
    if not given:
        if not (cfg.DATASETS.TRAIN or args.eval_only):
            raise ValueError(
                f"{args.config_file}: DATASETS.TRAIN is empty. Name registered datasets there, or "
                "give --train-images with --train-labels or --train-json (see docs/own_data.md)."
            )
        return
    _check_arguments(args, given)
    table = _table(args, Path(cfg.OUTPUT_DIR).absolute())
    write_table(table)
    register_table(table.path)
    train, *val = table.datasets
    keys = fitting_keys([train], val) | {"DATASETS.TABLES": [str(table.path)]}
    args.opts = [str(word) for pair in keys.items() for word in pair] + (args.opts or [])


def _data_arguments(args: argparse.Namespace) -> list[str]:
    names = [f"{split}_{what}" for split in _SPLITS for what in _HELP]
    return [name for name in (*names, "classes", "ignore_label") if getattr(args, name) is not None]


def _check_arguments(args: argparse.Namespace, given: list[str]) -> None:
    def need(argument: str, why: str) -> None:
        if argument not in given:
            raise ValueError(f"{argument} is missing: {why}. Given: {' '.join(given)}.")

    def refuse(argument: str, why: str) -> None:
        if argument in given:
            raise ValueError(f"{argument} does not fit: {why}. Given: {' '.join(given)}.")

    if not re.fullmatch(r"[\w.-]+", args.name):
        raise ValueError(f"--name {args.name!r}: expected letters, digits, '_', '.' or '-'.")
    if "--train-json" not in given:
        need("--train-labels", "training needs label maps, or annotations in --train-json")
    has_json = "--train-labels" not in given
    need("--train-images", "training needs images")
    if has_json:
        for argument in ("--classes", "--ignore-label", "--val-labels"):
            refuse(argument, "with --train-json, classes and annotations come from JSON files")
    else:
        need("--classes", "label maps do not name the classes; one a line")
        for argument in ("--train-json", "--train-panoptic", "--val-json", "--val-panoptic"):
            refuse(argument, "the annotations are the label maps of --train-labels")
    annotations = "--val-json" if has_json else "--val-labels"
    parts = ["--val-images", annotations]
    if "--train-panoptic" in given:
        parts.append("--val-panoptic")
    if any(argument.startswith("--val-") for argument in given):
        for argument in parts:
            need(argument, f"evaluation needs {' and '.join(parts)}")


def _table(args: argparse.Namespace, folder: Path) -> Table:
    datasets = {
        f"{args.name}_{split}": Annotated(
            images=getattr(args, f"{split}_images"),
            labels=getattr(args, f"{split}_labels"),
            json_file=getattr(args, f"{split}_json"),
            panoptic=getattr(args, f"{split}_panoptic"),
        )
        for split in _SPLITS
        if getattr(args, f"{split}_images") is not None
    }
    # An evaluation must not replace the table of the training in the same folder.
    path = folder / f"{args.name}{'_eval' if args.eval_only else ''}_table.json"
    if args.train_json is not None:
        return json_table(datasets, path=path)
    return semantic_table(datasets, args.classes, ignore_label=args.ignore_label, path=path)
