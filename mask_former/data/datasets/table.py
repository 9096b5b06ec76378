"""Read and check tables of datasets, which are JSON files.

A table (``tables/*.json``) describes a family of datasets that share their categories. Its paths
are absolute, or relative to ``$DETECTRON2_DATASETS`` (in a user's table: to the table's folder)::

    prepare       optional: how to create the files, for the error message if they are missing
    generator     only in tables of the package: name of a function of the package that creates
                  the files on first use
    ignore_label  the value of pixels without a class (default 255)
    labels_are_ids  pixels of label maps are the categories' ids, not their indices
    datasets      name -> kind ("sem_seg", "panoptic" or "instances"), folders, evaluator_type;
                  instances have a json_file, or are the things of panoptic_json, panoptic_root;
                  a panoptic dataset may have a sem_seg_root, for the semantic evaluation, and a
                  json_file, for that of instances (without it: the things of its panoptic_json)
    categories    one per line, in contiguous order: name, and, if they apply,
                  id (in the annotation files), color (RGB), isthing,
                  source_id (in the original download, for ``datasets/prepare_*.py``)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mask_former.utils.bounded_files import UnreadableFile, read_json
from mask_former.utils.errors import short

__all__ = ["TABLES", "Category", "Dataset", "Table", "check_table", "read_table", "with_base"]

TABLES = Path(__file__).resolve().parents[1] / "tables"

_PATHS = ("image_root", "sem_seg_root", "panoptic_root", "panoptic_json", "json_file")
_FLAGS = ("stuff_ids_of_things", "separate_things")
_NEVER_NONE = ("name", "image_root", "kind", "ignore_label", "isthing", "labels_are_ids")
_TYPES: dict[str, type] = {
    **dict.fromkeys((*_PATHS, "name", "kind", "evaluator_type", "prepare", "generator"), str),
    **dict.fromkeys(("id", "source_id", "ignore_label"), int),
    **dict.fromkeys(("isthing", "labels_are_ids", *_FLAGS), bool),
    "color": list,
}
"""Expected types of the fields of tables, datasets and categories, by name."""
_WORDS = {
    str: "text (a name must not be empty)",
    int: "an integer, 0 or more",
    bool: "true or false",
    list: "three integers in 0 … 255",
}


@dataclass(frozen=True)
class Category:
    """One class. Its contiguous id is its index in the table."""

    name: str
    id: int | None = None
    color: list[int] | None = None
    isthing: bool = False
    source_id: int | None = None

    @property
    def dataset_id(self) -> int:
        """The id in the annotation files, in tables that have ids."""
        assert self.id is not None, self.name
        return self.id


@dataclass(frozen=True)
class Dataset:
    """One dataset of a table, such as a split; see the module for the paths."""

    kind: str
    image_root: str
    sem_seg_root: str | None = None
    panoptic_root: str | None = None
    panoptic_json: str | None = None
    json_file: str | None = None
    evaluator_type: str | None = None


@dataclass(frozen=True)
class Table:
    """A family of datasets over one list of categories."""

    path: Path
    datasets: dict[str, Dataset]
    categories: list[Category]
    prepare: str = "correct the paths in the table, or put the files in place"
    generator: str | None = None
    ignore_label: int = 255
    labels_are_ids: bool = False
    stuff_ids_of_things: bool = False  # ADE20K's stuff id map also lists the things
    separate_things: bool = False  # `thing_classes` of a panoptic dataset lists the things only

    @property
    def names(self) -> list[str]:
        """The names of the classes, by contiguous id."""
        return [c.name for c in self.categories]

    def contiguous_ids(self, isthing: bool | None = None) -> dict[int, int]:
        """Map dataset ids to contiguous ids, for things, stuff, or both (None)."""
        return {
            c.id: i
            for i, c in enumerate(self.categories)
            if c.id is not None and isthing in (None, c.isthing)
        }

    @property
    def ignored(self) -> int:
        """The ignore label after remapping to contiguous ids; never a class id."""
        free = (self.ignore_label, 255, 65535)
        return next(i for i in free if i >= len(self.categories) or not self.labels_are_ids)

    @property
    def label_map(self) -> dict[int, int] | None:
        """Pixel value -> class id or ``ignored``; None if pixels are class ids already."""
        if not self.labels_are_ids:
            return None
        return self.contiguous_ids() | {self.ignore_label: self.ignored}

    @property
    def instance_ids(self) -> dict[int, int]:
        """Dataset id -> contiguous id among the things, which are the classes of instances."""
        return {i: index for index, i in enumerate(self.contiguous_ids(isthing=True))}

    @property
    def source_ids(self) -> dict[int, int]:
        """Id in the original download -> contiguous id, for categories that have a source id."""
        return {c.source_id: i for i, c in enumerate(self.categories) if c.source_id is not None}


def read_table(path: str | Path) -> Table:
    """Read and check one table; a name without suffix ("camvid") means a table of the package.

    Raises:
        FileNotFoundError: if the table is missing.
        ValueError: if it lacks a key, has an unknown one, or is inconsistent.
    """
    path = Path(path)
    if path.suffix != ".json":
        path = TABLES / f"{path}.json"
    try:
        content = read_json(path)
        datasets = {name: Dataset(**entry) for name, entry in content.pop("datasets").items()}
        categories = [Category(**entry) for entry in content.pop("categories")]
        table = Table(path=path, datasets=datasets, categories=categories, **content)
    except KeyError as error:
        raise ValueError(f"{path}: the key {error} is missing.") from error
    except (TypeError, AttributeError) as error:
        raise UnreadableFile(f"{path} is not a table of datasets: {error}.") from error
    check_table(table)
    return table


def with_base(table: Table, base: Path) -> Table:
    """Return the table with absolute paths; relative ones are resolved against ``base``."""
    datasets = {}
    for name, dataset in table.datasets.items():
        paths = {key: value for key in _PATHS if (value := getattr(dataset, key)) is not None}
        joined = {key: str((base / value).resolve()) for key, value in paths.items()}
        datasets[name] = replace(dataset, **joined)
    return replace(table, datasets=datasets)


def check_table(table: Table) -> None:
    """Raise ValueError if a table is inconsistent."""
    _check_types(table)
    if table.generator is not None and table.path.resolve().parent != TABLES:
        raise ValueError(
            f"{table.path}: found a `generator`, {table.generator!r}, which only the package's own "
            "tables may have: a table must not choose code to run. Remove the key, and create the "
            "files before you use the table."
        )
    ids = [c.id for c in table.categories]
    if any(i is not None for i in ids) and len(set(ids) - {None}) != len(ids):
        raise ValueError(
            f"{table.path}: the ids of the categories are {ids[:8]}; expected a unique `id` in "
            "each category, or none at all."
        )
    source_ids = [c.source_id for c in table.categories if c.source_id is not None]
    if len(set(source_ids)) < len(source_ids):
        raise ValueError(f"{table.path}: two categories share a `source_id`: make them unique.")
    _check_labels(table)
    if len({c.color is None for c in table.categories}) > 1:
        raise ValueError(f"{table.path}: some categories lack a `color`; expected all or none.")
    from_panoptic = ["panoptic_root", "panoptic_json"]
    needed = {"sem_seg": ["sem_seg_root"], "panoptic": from_panoptic, "instances": ["json_file"]}
    for name, dataset in table.datasets.items():
        if dataset.kind not in needed:
            raise ValueError(
                f"{table.path}: {name}: found kind {dataset.kind!r}, expected "
                f"{' or '.join(needed)}."
            )
        keys = needed[dataset.kind]
        if dataset.kind == "instances" and dataset.json_file is None:
            keys = from_panoptic if dataset.panoptic_json is not None else keys
        missing = [key for key in keys if getattr(dataset, key) is None]
        if missing:
            raise ValueError(f"{table.path}: {name}: a {dataset.kind} dataset needs {missing}.")
        if dataset.kind != "sem_seg" and None in ids:
            raise ValueError(f"{table.path}: {name}: {dataset.kind} data needs category ids.")
        if dataset.kind == "instances" and not table.instance_ids:
            raise ValueError(
                f"{table.path}: {name}: instances need a category that is a thing: set "
                '"isthing": true.'
            )


def _check_types(table: Table) -> None:
    """Check the type of each value, because JSON may contain any type."""
    entries = [("the table", table), *table.datasets.items()]
    entries += [(f"category {number}", c) for number, c in enumerate(table.categories)]
    for name, entry in entries:
        for key, value in vars(entry).items():
            expected = _TYPES.get(key)
            if expected is None or (value is None and key not in _NEVER_NONE):
                continue
            if type(value) is not expected or not _is_in_range(key, value):
                raise ValueError(
                    f"{table.path}: {name}: `{key}` is {short(value, 40)!r}, expected "
                    f"{_WORDS[expected]}."
                )


def _is_in_range(key: str, value: Any) -> bool:
    if key == "color":
        return len(value) == 3 and all(type(c) is int and 0 <= c <= 255 for c in value)
    return bool(value.strip()) if key == "name" else type(value) is not int or value >= 0


def _check_labels(table: Table) -> None:
    """Check that the ignore label is not a class, and that ids exist if labels are ids."""
    ids = [c.id for c in table.categories]
    if table.labels_are_ids and not all(i is not None and 0 <= i <= 65535 for i in ids):
        raise ValueError(
            f"{table.path}: with `labels_are_ids` every category needs an `id` in 0 … 65535, the "
            f"pixel value in the label maps; found {ids[:8]}."
        )
    values = set(ids) if table.labels_are_ids else set(range(len(ids)))
    has_label_maps = any(d.sem_seg_root is not None for d in table.datasets.values())
    if has_label_maps and table.ignore_label in values:
        raise ValueError(
            f"{table.path}: `ignore_label` is {table.ignore_label}, the pixel value of a class. "
            "Set it to a value that is not a class: 255, or 65535 in 16-bit label maps."
        )
