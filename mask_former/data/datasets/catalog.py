"""Register the datasets of JSON tables (see ``table``) with detectron2's catalogs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..shapes.writer import generate as generate_shapes
from .builtin import extend_builtin_metadata
from .loaders import load_instances, load_panoptic, load_sem_seg
from .table import TABLES, Category, Dataset, Table, check_table, read_table, with_base

__all__ = [
    "TABLES",
    "Category",
    "Dataset",
    "Table",
    "check_dataset_exists",
    "check_table",
    "datasets_root",
    "metadata",
    "read_table",
    "register",
    "register_table",
    "register_tables",
]

_GENERATORS: dict[str, Callable[[Path], None]] = {"shapes": generate_shapes}
"""Functions that create the files of a dataset folder, by the ``generator`` of a table."""

_EVALUATORS = {"sem_seg": "sem_seg", "panoptic": "coco_panoptic_seg", "instances": "coco"}


def check_dataset_exists(name: str) -> None:
    """Check that a dataset is registered.

    Raises:
        KeyError: if it is not; lists the registered ones.
    """
    if name not in DatasetCatalog:
        raise KeyError(f"There is no dataset {name!r}; expected one of {sorted(DatasetCatalog)}.")


def datasets_root() -> Path:
    """Return ``$DETECTRON2_DATASETS``, or "datasets" if it is unset, as detectron2 does."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def metadata(table: Table, dataset: Dataset, root: Path) -> dict[str, Any]:
    """Build detectron2's metadata of one dataset.

    Panoptic metadata is like that of detectron2's "standard" COCO panoptic dataset: things and
    stuff share one list of classes and one of colours (unless the table has ``separate_things``),
    and only the id maps separate them. Instance metadata lists only the things.
    """
    if dataset.kind == "instances":
        return _instance_metadata(table, dataset, root)
    meta: dict[str, Any] = {
        "image_root": str(root / dataset.image_root),
        "evaluator_type": dataset.evaluator_type or _EVALUATORS[dataset.kind],
        "ignore_label": table.ignored,
        "stuff_classes": table.names,
    }
    if table.label_map is not None:
        meta["label_map"] = table.label_map
    if all(c.color is not None for c in table.categories):
        meta["stuff_colors"] = [c.color for c in table.categories]
    if dataset.kind == "sem_seg":
        meta["sem_seg_root"] = str(root / str(dataset.sem_seg_root))
        if table.contiguous_ids():
            meta["stuff_dataset_id_to_contiguous_id"] = table.contiguous_ids()
        return meta
    things = [c for c in table.categories if c.isthing or not table.separate_things]
    if "stuff_colors" in meta:
        meta["thing_colors"] = [c.color for c in things]
    if dataset.sem_seg_root is not None:
        meta["sem_seg_root"] = str(root / dataset.sem_seg_root)
    return meta | {
        "panoptic_root": str(root / str(dataset.panoptic_root)),
        "panoptic_json": str(root / str(dataset.panoptic_json)),
        "json_file": None if dataset.json_file is None else str(root / dataset.json_file),
        "label_divisor": 1000,
        "thing_classes": [c.name for c in things],
        "thing_dataset_id_to_contiguous_id": table.contiguous_ids(isthing=True),
        "stuff_dataset_id_to_contiguous_id": table.contiguous_ids(
            isthing=None if table.stuff_ids_of_things else False
        ),
    }


def _instance_metadata(table: Table, dataset: Dataset, root: Path) -> dict[str, Any]:
    things = [c for c in table.categories if c.isthing]
    meta: dict[str, Any] = {
        "image_root": str(root / dataset.image_root),
        "evaluator_type": dataset.evaluator_type or _EVALUATORS[dataset.kind],
        "ignore_label": table.ignored,
        "thing_classes": [c.name for c in things],
        "thing_dataset_id_to_contiguous_id": table.instance_ids,
    }
    if things[0].color is not None:
        meta["thing_colors"] = [c.color for c in things]
    keys = ("json_file", "panoptic_root", "panoptic_json")
    return meta | {key: str(root / p) for key in keys if (p := getattr(dataset, key)) is not None}


def register_tables(root: str | Path | None = None) -> None:
    """Register every table of the package, and extend the metadata of detectron2's own datasets.

    Repeated calls have no further effect.

    Args:
        root: the folder of all datasets; None: ``$DETECTRON2_DATASETS``, or "datasets".

    Raises:
        ValueError: if other code registered a dataset of the same name.
    """
    tables = {path.stem: read_table(path) for path in sorted(TABLES.glob("*.json"))}
    for table in tables.values():
        register(table, _base(root))
    extend_builtin_metadata(tables)


def register_table(path: str | Path, root: str | Path | None = None) -> None:
    """Register the datasets of one table file; see ``register_tables``."""
    register(read_table(path), _base(root))


def _base(root: str | Path | None) -> Path:
    return datasets_root() if root is None else Path(root).expanduser()


def register(table: Table, base: Path) -> None:
    """Register the datasets of a table, whose paths are relative to ``base``."""
    for name, dataset in table.datasets.items():
        content = repr(replace(with_base(table, base), path=Path()))
        origin = (str(table.path.resolve()), content)
        if name in DatasetCatalog:
            known = getattr(DatasetCatalog[name], "origin", None)
            if known == origin:
                continue
            if known is None or not {*known} & {*origin}:
                raise ValueError(
                    f"The dataset '{name}' of {table.path} is already registered by "
                    f"{known[0] if known else 'other code'}. Register yours under another name."
                )
            # The same table with another root or other content, or a copy of it.
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, _Loader(table, name, base, origin))
        MetadataCatalog.get(name).set(**metadata(table, dataset, base))


@dataclass(frozen=True)
class _Loader:
    """Loader that detectron2's catalog calls; ``origin`` identifies its table and content."""

    table: Table
    name: str
    root: Path
    origin: tuple[str, str]

    def __call__(self) -> list[dict[str, Any]]:
        records, label_map = self._load(), self.table.label_map
        if label_map is not None:
            for record in records:
                if "sem_seg_file_name" in record:
                    record["label_map"] = label_map
        return records

    def _load(self) -> list[dict[str, Any]]:
        table, dataset = self.table, self.table.datasets[self.name]
        if table.generator is not None:
            _GENERATORS[table.generator](self.root / Path(dataset.image_root).parts[0])
        paths = {
            key: self.root / getattr(dataset, key)
            for key in ("image_root", "sem_seg_root", "panoptic_root", "panoptic_json", "json_file")
            if getattr(dataset, key) is not None
        }
        if dataset.kind == "panoptic":
            paths.pop("json_file", None)  # only the evaluation of instances reads it
        for path in paths.values():
            if not path.exists():
                raise FileNotFoundError(
                    f"Dataset '{self.name}': {path} is missing. Relative paths in {table.path} are "
                    f"relative to '{self.root}' (for the package's own tables: the environment "
                    f"variable DETECTRON2_DATASETS). To create it: {table.prepare}."
                )
        if dataset.kind == "sem_seg":
            return load_sem_seg(**paths)
        if dataset.kind == "instances":
            return load_instances(**paths, contiguous_ids=table.instance_ids)
        return load_panoptic(
            **paths,
            contiguous_ids=table.contiguous_ids(),
            thing_ids=table.contiguous_ids(isthing=True),
        )
