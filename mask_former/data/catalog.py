"""Datasets from JSON tables, registered with detectron2's catalogs.

A table (`tables/*.json`) describes a family of datasets that share their categories. All its
paths are relative to `$DETECTRON2_DATASETS`:

    prepare       how to make the files, told to users who lack them
    generator     optional: a module whose `generate(folder)` makes them on first use
    ignore_label  the pixel value that has no class (default 255)
    datasets      name -> kind ("sem_seg" or "panoptic"), folders, evaluator_type
    categories    one a line, in contiguous order: name, and where they apply
                  id (in the annotation files), color (RGB), isthing,
                  source_id (in the original download, for `datasets/prepare_*.py`)
"""

from __future__ import annotations

import importlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.data.loaders import load_panoptic, load_sem_seg

TABLES = Path(__file__).parent / "tables"
_EVALUATORS = {"sem_seg": "sem_seg", "panoptic": "coco_panoptic_seg"}


@dataclass(frozen=True)
class Category:
    """One class. Its contiguous id is its position in the table."""

    name: str
    id: int | None = None
    color: list[int] | None = None
    isthing: bool = False
    source_id: int | None = None

    @property
    def dataset_id(self) -> int:
        """The id in the annotation files, for tables that have ids."""
        assert self.id is not None, self.name
        return self.id


@dataclass(frozen=True)
class Dataset:
    """One split of a table; folders and files are relative to the root of all datasets."""

    kind: str
    image_root: str
    sem_seg_root: str | None = None
    panoptic_root: str | None = None
    panoptic_json: str | None = None
    evaluator_type: str | None = None


@dataclass(frozen=True)
class Table:
    """A family of datasets over one list of categories."""

    path: Path
    prepare: str
    datasets: dict[str, Dataset]
    categories: list[Category]
    generator: str | None = None
    ignore_label: int = 255
    stuff_ids_of_things: bool = False  # ADE20K's stuff id map lists the things, too

    @property
    def names(self) -> list[str]:
        return [c.name for c in self.categories]

    def contiguous_ids(self, isthing: bool | None = None) -> dict[int, int]:
        """Dataset id -> contiguous id, of things, of stuff, or of both (None)."""
        return {
            c.id: i
            for i, c in enumerate(self.categories)
            if c.id is not None and isthing in (None, c.isthing)
        }

    @property
    def source_ids(self) -> dict[int, int]:
        """Id in the original download -> contiguous id, of the categories that have one."""
        return {c.source_id: i for i, c in enumerate(self.categories) if c.source_id is not None}


def datasets_root() -> Path:
    """`$DETECTRON2_DATASETS`, or "datasets" where it is unset, as in detectron2."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def read_table(path: str | Path) -> Table:
    """Read and check one table; a bare name ("camvid") means one of the package's own.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the table lacks a key, has an unknown one, or contradicts itself.
    """
    path = Path(path)
    if path.suffix != ".json":
        path = TABLES / f"{path}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        datasets = {name: Dataset(**entry) for name, entry in content.pop("datasets").items()}
        categories = [Category(**entry) for entry in content.pop("categories")]
        table = Table(path=path, datasets=datasets, categories=categories, **content)
    except KeyError as error:
        raise ValueError(f"{path}: the key {error} is missing.") from error
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a table of datasets: {error}.") from error
    _check_table(table)
    return table


def _check_table(table: Table) -> None:
    ids = [c.id for c in table.categories]
    if any(i is not None for i in ids) and len(set(ids) - {None}) != len(ids):
        raise ValueError(f"{table.path}: every category needs an `id` of its own, or none has one.")
    source_ids = [c.source_id for c in table.categories if c.source_id is not None]
    if len(set(source_ids)) < len(source_ids):
        raise ValueError(f"{table.path}: two categories share a `source_id`.")
    if len({c.color is None for c in table.categories}) > 1:
        raise ValueError(f"{table.path}: every category needs a `color`, or none has one.")
    needed = {"sem_seg": ["sem_seg_root"], "panoptic": ["panoptic_root", "panoptic_json"]}
    for name, dataset in table.datasets.items():
        if dataset.kind not in needed:
            raise ValueError(
                f"{table.path}: {name}: found kind {dataset.kind!r}, expected "
                f"{' or '.join(needed)}."
            )
        missing = [key for key in needed[dataset.kind] if getattr(dataset, key) is None]
        if missing:
            raise ValueError(f"{table.path}: {name}: a {dataset.kind} dataset needs {missing}.")
        if dataset.kind == "panoptic" and None in ids:
            raise ValueError(f"{table.path}: {name}: a panoptic dataset needs category ids.")


def metadata(table: Table, dataset: Dataset, root: Path) -> dict[str, Any]:
    """detectron2's metadata of one dataset.

    Panoptic ones follow detectron2's "standard" COCO panoptic: classes and colours of things and
    of stuff are the same list of all categories, only the id maps tell them apart.
    """
    meta: dict[str, Any] = {
        "image_root": str(root / dataset.image_root),
        "evaluator_type": dataset.evaluator_type or _EVALUATORS[dataset.kind],
        "ignore_label": table.ignore_label,
        "stuff_classes": table.names,
    }
    if all(c.color is not None for c in table.categories):
        meta["stuff_colors"] = [c.color for c in table.categories]
    if dataset.kind == "sem_seg":
        meta["sem_seg_root"] = str(root / str(dataset.sem_seg_root))
        if table.contiguous_ids():
            meta["stuff_dataset_id_to_contiguous_id"] = table.contiguous_ids()
        return meta
    if "stuff_colors" in meta:
        meta["thing_colors"] = meta["stuff_colors"]
    return meta | {
        "panoptic_root": str(root / str(dataset.panoptic_root)),
        "panoptic_json": str(root / str(dataset.panoptic_json)),
        "json_file": None,
        "label_divisor": 1000,
        "thing_classes": table.names,
        "thing_dataset_id_to_contiguous_id": table.contiguous_ids(isthing=True),
        "stuff_dataset_id_to_contiguous_id": table.contiguous_ids(
            isthing=None if table.stuff_ids_of_things else False
        ),
    }


def register_tables(root: str | Path | None = None) -> None:
    """Register every table of the package. Doing it twice is doing it once.

    Args:
        root: the folder of all datasets; by default `$DETECTRON2_DATASETS`, or "datasets".

    Raises:
        ValueError: a dataset of that name was registered by someone else.
    """
    for path in sorted(TABLES.glob("*.json")):
        register_table(path, root)


def register_table(path: str | Path, root: str | Path | None = None) -> None:
    """Register the datasets of one table, which may lie anywhere; see `register_tables`."""
    table = read_table(path)
    base = datasets_root() if root is None else Path(root).expanduser()
    for name, dataset in table.datasets.items():
        origin = (str(table.path.resolve()), str(base))
        if name in DatasetCatalog:
            known = getattr(DatasetCatalog[name], "origin", None)
            if known == origin:
                continue
            if known is None or known[0] != origin[0]:
                raise ValueError(
                    f"The dataset '{name}' of {table.path} is already registered by "
                    f"{known[0] if known else 'other code'}. Register yours under another name."
                )
            DatasetCatalog.remove(name)  # the same table below another root
            MetadataCatalog.remove(name)
        DatasetCatalog.register(name, _Loader(table, name, base, origin))
        MetadataCatalog.get(name).set(**metadata(table, dataset, base))


@dataclass(frozen=True)
class _Loader:
    """The function that detectron2's catalog calls; `origin` tells it from other people's."""

    table: Table
    name: str
    root: Path
    origin: tuple[str, str]

    def __call__(self) -> list[dict[str, Any]]:
        table, dataset = self.table, self.table.datasets[self.name]
        if table.generator is not None:
            generate = importlib.import_module(table.generator).generate
            generate(self.root / Path(dataset.image_root).parts[0])
        paths = {
            key: self.root / getattr(dataset, key)
            for key in ("image_root", "sem_seg_root", "panoptic_root", "panoptic_json")
            if getattr(dataset, key) is not None
        }
        for path in paths.values():
            if not path.exists():
                raise FileNotFoundError(
                    f"Dataset '{self.name}': {path} is not there. Datasets are looked for below "
                    f"'{self.root}' (environment variable DETECTRON2_DATASETS). "
                    f"How to make this one: {table.prepare}."
                )
        if dataset.kind == "sem_seg":
            return load_sem_seg(**paths)
        return load_panoptic(
            **paths,
            contiguous_ids=table.contiguous_ids(),
            thing_ids=table.contiguous_ids(isthing=True),
        )
