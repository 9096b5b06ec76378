"""List the images and annotations to check: of folders, a COCO JSON or a registered dataset.

Unlike the loaders of datasets, which stop at the first error, these functions record every error
of the source as a finding and continue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.structures import Record
from mask_former.utils.errors import few

from ..datasets.catalog import check_dataset_exists
from ..datasets.class_files import classes_of_json
from ..datasets.loaders import files_by_stem
from ..formats.coco_json import read_json
from ..mappers.base import ignore_label_of
from .images import ClassTable, Finding

__all__ = [
    "Source",
    "classes_of_dataset",
    "evenly_spaced",
    "from_coco_json",
    "from_folders",
    "from_registered",
]


@dataclass(frozen=True)
class Source:
    """The images to check, and the findings about the folders or the JSON that list them."""

    records: list[Record]
    classes: ClassTable
    findings: list[Finding] = field(default_factory=list)


def evenly_spaced(records: Sequence[Record], count: int) -> list[Record]:
    """Choose ``count`` records, or all if there are fewer, the first and the last among them."""
    chosen = np.linspace(0, len(records) - 1, min(count, len(records))).round().astype(int)
    return [records[i] for i in chosen]


def from_folders(
    images: Path, labels: Path, classes: ClassTable, label_map: Mapping[int, int] | None = None
) -> Source:
    """Pair images and label maps of the same stem.

    Args:
        images, labels: folders.
        classes: the classes of the label maps.
        label_map: pixel value -> class id or ignore label; None: pixels are class ids already.

    Raises:
        FileNotFoundError: if a folder is missing, or holds no image.
        ValueError: if two files of one folder share a stem.
    """
    by_stem = [_files_of(folder) for folder in (images, labels)]
    findings = [
        Finding(str(ours[stem]), f"has no partner '{stem}.*' in {folder}.")
        for ours, theirs, folder in zip(by_stem, by_stem[::-1], (labels, images), strict=True)
        for stem in sorted(ours.keys() - theirs.keys())
    ]
    files, label_files = by_stem
    mapped = {} if label_map is None else {"label_map": label_map}
    records = [
        {"file_name": str(files[stem]), "sem_seg_file_name": str(label_files[stem]), **mapped}
        for stem in sorted(files.keys() & label_files.keys())
    ]
    return Source(records, classes, findings)


def _files_of(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing or not a folder: expected a folder of files.")
    return files_by_stem(folder)


def from_registered(name: str) -> Source:
    """Read a dataset of detectron2's catalog; ``import mask_former`` registers the built-in ones.

    If its loader raises an error, its files are found through the paths in its metadata.

    Raises:
        KeyError: if there is no such dataset.
        FileNotFoundError, ValueError: if its loader raises, and its metadata does not name existing
            folders and files.
    """
    check_dataset_exists(name)
    try:
        records = DatasetCatalog.get(name)
    except (FileNotFoundError, ValueError):
        source = _from_metadata(name)
        if source is None or not source.findings:
            raise
        return source
    if not records:
        raise ValueError(f"The dataset {name!r} has no image.")
    return Source(records, classes_of_dataset(name, records[0]))


def _from_metadata(name: str) -> Source | None:
    metadata = MetadataCatalog.get(name)
    keys = ("image_root", "sem_seg_root", "panoptic_root", "panoptic_json", "json_file")
    paths = {key: Path(value) for key in keys if (value := metadata.get(key)) is not None}
    if "image_root" not in paths or not all(path.exists() for path in paths.values()):
        return None
    images = paths["image_root"]
    if "panoptic_json" in paths:
        return from_coco_json(paths["panoptic_json"], images, paths.get("panoptic_root"))
    if "json_file" in paths:
        return from_coco_json(paths["json_file"], images)
    if "sem_seg_root" not in paths:
        return None
    classes = classes_of_dataset(name, {"sem_seg_file_name": ""})
    return from_folders(images, paths["sem_seg_root"], classes, metadata.get("label_map"))


def classes_of_dataset(name: str, record: Record) -> ClassTable:
    """Read the classes of a dataset's annotations from its metadata.

    Args:
        name: the name of a registered dataset.
        record: one of its records, which shows the kind of annotation.

    Raises:
        ValueError: if the metadata has no classes, or a label map's ignore label is missing.
    """
    has_map = "sem_seg_file_name" in record
    kinds = ["stuff", "thing"] if has_map or "pan_seg_file_name" in record else ["thing", "stuff"]
    metadata = MetadataCatalog.get(name)
    names = next(filter(None, (metadata.get(f"{kind}_classes") for kind in kinds)), None)
    if names is None:
        raise ValueError(
            f"The metadata of {name!r} has no classes. Set them: "
            f"MetadataCatalog.get({name!r}).set({kinds[0]}_classes=[…])."
        )
    return ClassTable(names, ignore_label_of((name,)) if has_map else None)


def from_coco_json(path: Path, images: Path, panoptic_root: Path | None = None) -> Source:
    """Read a JSON in COCO's instance format or, with the folder of its PNGs, panoptic format.

    Classes are the JSON's ``categories``, in the order of their ids.

    Raises:
        FileNotFoundError: if the JSON is missing.
        ValueError: if it is not such a JSON, or is in the other format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing or not a file: expected a COCO JSON.")
    content = read_json(path, "COCO's format")
    is_panoptic = "segments_info" in content["annotations"][0]
    if is_panoptic and panoptic_root is None:
        raise ValueError(
            f"{path} is in COCO's panoptic format (it has 'segments_info'): pass the folder of its "
            "PNGs, too (--panoptic-root)."
        )
    if panoptic_root is not None and not is_panoptic:
        raise ValueError(
            f"{path} has no 'segments_info', so it is not in COCO's panoptic format: omit "
            "--panoptic-root, or pass the panoptic JSON."
        )
    try:
        return _Coco(path, content, images, is_panoptic).read(panoptic_root)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not in COCO's format: {type(error).__name__} {error} while reading it. "
            "https://cocodataset.org/#format-data describes the keys of each entry."
        ) from error


class _Coco:
    """A COCO JSON and its findings, while it is converted to records."""

    def __init__(
        self, path: Path, content: dict[str, Any], images: Path, is_panoptic: bool
    ) -> None:
        self.path = path
        self.content = content
        self.images = images
        self.findings: list[Finding] = []
        kind = "panoptic" if is_panoptic else "instances"
        categories = classes_of_json(path, content, kind)
        self.names = [category.name for category in categories]
        self.contiguous = {category.dataset_id: i for i, category in enumerate(categories)}
        self._report_duplicates("category name", self.names)

    def read(self, panoptic_root: Path | None) -> Source:
        """Convert the images to records.

        Args:
            panoptic_root: the folder of the PNGs, for COCO panoptic format; None for instances.
        """
        by_image: dict[Any, list[dict[str, Any]]] = {}
        for image in self._unique("images"):
            by_image[image["id"]] = []
        key = "image_id" if panoptic_root else "id"
        for annotation in self._unique("annotations", key):
            by_image.setdefault(annotation["image_id"], []).append(annotation)
        known = {image["id"] for image in self.content["images"]}
        if lost := [image_id for image_id in by_image if image_id not in known]:
            self._report(f"annotations have the image_id {few(lost)}, which is not in 'images'.")
        records = [
            {
                "file_name": str(self.images / image["file_name"]),
                "image_id": image["id"],
                **{side: image[side] for side in ("height", "width") if side in image},
            }
            for image in self._unique("images", report=False)
        ]
        for record in records:
            entries = by_image[record["image_id"]]
            if panoptic_root is None:
                record["annotations"] = self._mapped(entries, record)
            elif entries:
                record["pan_seg_file_name"] = str(panoptic_root / entries[0]["file_name"])
                record["segments_info"] = self._mapped(entries[0]["segments_info"], record)
            else:
                message = f"is in 'images' of {self.path}, but has no annotation: it is not used."
                self.findings.append(Finding(record["file_name"], message, is_error=False))
        used = [r for r in records if panoptic_root is None or "segments_info" in r]
        return Source(used, ClassTable(self.names), self.findings)

    def _mapped(self, segments: list[dict[str, Any]], record: Record) -> list[dict[str, Any]]:
        """Replace category ids by contiguous class ids, unknown ones by None."""
        unknown = sorted({s["category_id"] for s in segments} - self.contiguous.keys(), key=str)
        if unknown:
            message = (
                f"has the category_id {few(unknown)} in {self.path}, expected the ids of its "
                f"'categories': {few(sorted(self.contiguous))}."
            )
            self.findings.append(Finding(record["file_name"], message))
        return [s | {"category_id": self.contiguous.get(s["category_id"])} for s in segments]

    def _unique(self, entries: str, key: str = "id", report: bool = True) -> list[dict[str, Any]]:
        """Return the entries; of those with the same value of ``key``, only the first."""
        found = self.content[entries]
        if report:
            self._report_duplicates(f"{key} of {entries!r}", [entry[key] for entry in found])
        return list({entry[key]: entry for entry in reversed(found)}.values())[::-1]

    def _report_duplicates(self, what: str, values: Iterable[Any]) -> None:
        duplicates = [value for value, count in Counter(values).items() if count > 1]
        if duplicates:
            self._report(f"the {what} {few(duplicates)} occurs more than once, expected once.")

    def _report(self, message: str) -> None:
        self.findings.append(Finding(str(self.path), message))
