"""Custom datasets: describe folders and files by a table of datasets, and register it.

``register_*()`` register such a table (see ``table``) at once, ``tools/train_net.py`` writes it
next to its results, and a user may also write one by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mask_former.utils.atomic_files import replace_text

from ..formats.coco_json import read_json
from .catalog import Category, Dataset, Table, check_table, read_table, register
from .class_files import classes_of_json, read_classes
from .table import with_base

__all__ = [
    "Annotated",
    "copy_table",
    "json_table",
    "register_instances",
    "register_panoptic",
    "register_semantic",
    "semantic_table",
    "write_table",
]


@dataclass(frozen=True)
class Annotated:
    """The files of one dataset: its images and their annotations, of one kind."""

    images: str | Path
    labels: str | Path | None = None
    """A folder of label maps."""
    json_file: str | Path | None = None
    """A JSON in COCO's instance or panoptic format."""
    panoptic: str | Path | None = None
    """The folder of the PNGs of a panoptic ``json_file``."""


def register_semantic(
    name: str,
    images: str | Path,
    labels: str | Path,
    classes: str | Path | Sequence[str | Category],
    *,
    ignore_label: int | None = None,
) -> Table:
    """Register images with label maps of the same stem as a detectron2 dataset.

    A repeated call has no further effect; a call with other arguments replaces the earlier dataset.
    Each process of a job must call it.

    Args:
        name: the name of the dataset, for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        images: the folder of the images.
        labels: a folder of single-channel 8-bit or 16-bit images; a pixel is the index of its class
            in ``classes``, or the value that ``classes`` assigns to that class.
        classes: a file or a list of lines ``NAME`` or ``VALUE: NAME``, optionally followed by a
            colour ``#RRGGBB``; see ``read_classes``.
        ignore_label: the pixel value that has no class; by default 255, or 65535 if 255 is a class.

    Returns:
        The registered table.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the classes are malformed, the ignore label is a class, or the name is taken.
    """
    table = semantic_table(
        {name: Annotated(images, labels=labels)}, classes, ignore_label=ignore_label
    )
    register(table, Path())
    return table


def register_instances(name: str, images: str | Path, json_file: str | Path) -> Table:
    """Register images with a JSON in COCO's instance format; see ``register_semantic``.

    The classes, with their names, ids and colours, are the JSON's ``categories``.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the JSON is malformed or panoptic, or the name is taken.
    """
    table = json_table({name: Annotated(images, json_file=json_file)})
    register(table, Path())
    return table


def register_panoptic(
    name: str, images: str | Path, json_file: str | Path, panoptic: str | Path
) -> Table:
    """Register images with a JSON in COCO's panoptic format and its PNGs.

    Args:
        name, images: see ``register_semantic``.
        json_file: the annotations.
        panoptic: the folder of the PNGs that the JSON's annotations name.

    Raises:
        FileNotFoundError: if a folder or file is missing.
        ValueError: if the JSON is malformed or in instance format, or the name is taken.
    """
    table = json_table({name: Annotated(images, json_file=json_file, panoptic=panoptic)})
    register(table, Path())
    return table


def semantic_table(
    datasets: Mapping[str, Annotated],
    classes: str | Path | Sequence[str | Category],
    *,
    ignore_label: int | None = None,
    path: Path = Path("custom dataset"),
) -> Table:
    """Build the table of datasets with label maps; see ``register_semantic``.

    Args:
        datasets: the files of each dataset, by name.
        classes, ignore_label: see ``register_semantic``.
        path: the file that the table may be written to later.
    """
    categories = read_classes(classes)
    has_values = categories[0].id is not None
    values = {c.id if has_values else i for i, c in enumerate(categories)}
    if ignore_label is None:
        ignore_label = 65535 if 255 in values else 255
    entries = {
        name: Dataset(
            kind="sem_seg",
            image_root=_existing(data.images),
            sem_seg_root=_existing(data.labels),
        )
        for name, data in datasets.items()
    }
    table = Table(
        path=path,
        datasets=entries,
        categories=categories,
        ignore_label=ignore_label,
        labels_are_ids=has_values,
    )
    check_table(table)
    return table


def json_table(datasets: Mapping[str, Annotated], *, path: Path = Path("custom dataset")) -> Table:
    """Build the table of datasets in COCO format, all instances or all panoptic.

    Args:
        datasets: the files of each dataset, by name.
        path: the file that the table may be written to later.

    Raises:
        FileNotFoundError, ValueError: as ``register_instances`` and ``register_panoptic`` do; also
            if the JSONs have different categories.
    """
    entries: dict[str, Dataset] = {}
    categories: list[Category] = []
    first: Path | None = None
    for name, data in datasets.items():
        json_file = Path(_existing(data.json_file))
        entries[name], found = _read_json_dataset(data, json_file)
        if first is not None and found != categories:
            raise ValueError(
                f"{json_file} and {first} differ in their `categories`: "
                f"{_difference(found, categories)}; expected the same in both."
            )
        first, categories = json_file, found
    table = Table(path=path, datasets=entries, categories=categories)
    check_table(table)
    return table


def _read_json_dataset(data: Annotated, json_file: Path) -> tuple[Dataset, list[Category]]:
    content = read_json(json_file, "COCO format")
    is_panoptic = "segments_info" in content["annotations"][0]
    if is_panoptic and data.panoptic is None:
        raise ValueError(
            f"{json_file} is in COCO's panoptic format: its annotations have `segments_info`. Pass "
            "the folder of its PNGs, too (--train-panoptic, --val-panoptic; register_panoptic)."
        )
    if not is_panoptic and data.panoptic is not None:
        raise ValueError(
            f"{json_file} is in COCO's instance format: its annotations have no `segments_info`. "
            f"Omit the folder of panoptic PNGs, {data.panoptic}."
        )
    images = _existing(data.images)
    if not is_panoptic:
        dataset = Dataset(kind="instances", image_root=images, json_file=str(json_file))
        return dataset, classes_of_json(json_file, content, "instances")
    dataset = Dataset(
        kind="panoptic",
        image_root=images,
        panoptic_root=_existing(data.panoptic),
        panoptic_json=str(json_file),
    )
    return dataset, classes_of_json(json_file, content, "panoptic")


def _difference(found: Sequence[Category], expected: Sequence[Category]) -> str:
    one, other = ({c.id: (c.name, c.isthing) for c in side} for side in (found, expected))
    for i in [*other, *one]:
        if one.get(i) != other.get(i):
            return f"id {i} is {one.get(i, 'missing')} and {other.get(i, 'missing')}"
    return "their colours"


def _existing(path: str | Path | None) -> str:
    """Return the absolute path of a file or folder, which must exist."""
    assert path is not None
    found = Path(path).expanduser().absolute()
    if not found.exists():
        raise FileNotFoundError(f"{path} is missing (absolute path: {found}).")
    return str(found)


def copy_table(path: Path, copy: Path) -> None:
    """Write a copy of a table that refers to its files by absolute paths.

    Args:
        path: the table; its relative paths are relative to its folder.
        copy: the file to write.
    """
    write_table(replace(with_base(read_table(path), path.parent.absolute()), path=copy))


_ALWAYS = ("ignore_label", "labels_are_ids")
"""Settings that are written even if they have their default value."""


def write_table(table: Table) -> None:
    """Write a table to its ``path``, in the format of ``read_table``; create the folder."""
    settings = {
        field.name: value
        for field in fields(table)
        if field.name not in ("path", "datasets", "categories")
        and ((value := getattr(table, field.name)) != field.default or field.name in _ALWAYS)
    }
    parts = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in settings.items()]
    datasets = [f"{json.dumps(n)}: {_compact(asdict(d))}" for n, d in table.datasets.items()]
    categories = [_compact(asdict(category)) for category in table.categories]
    parts.append('"datasets": {\n' + ",\n".join(datasets) + "\n}")
    parts.append('"categories": [\n' + ",\n".join(categories) + "\n]")
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    table.path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(table.path, text)


def _compact(entry: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in entry.items() if value is not None and value is not False}
    return json.dumps(kept, ensure_ascii=False)
