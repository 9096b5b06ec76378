"""Category and image ids of a dataset, for results in the form that its evaluators read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.data.datasets.catalog import check_dataset_exists
from mask_former.data.datasets.class_files import classes_of_json
from mask_former.utils.bounded_files import DATASET_BYTES, UnreadableFile, read_json

__all__ = ["DatasetIds", "ImageId"]

ImageId = int | str
"""The id of an image in a dataset."""


@dataclass(frozen=True)
class DatasetIds:
    """Category and image ids of a dataset."""

    source: str
    """Name of the dataset or of the JSON file, for messages."""
    category_ids: dict[int, int]
    """Category id of the dataset for each contiguous class id of the model."""
    _images: dict[str, list[tuple[Path, ImageId]]] = field(repr=False)
    """Path and id of each image, by file name without folders."""

    @classmethod
    def of_dataset(cls, name: str) -> DatasetIds:
        """Read the ids of a registered dataset, whose files must exist.

        Raises:
            KeyError: If the dataset is not registered.
            FileNotFoundError: If its files are missing.
            ValueError: If it has no category ids or no image ids, because it is neither a panoptic
                nor an instance dataset.
        """
        check_dataset_exists(name)
        metadata = MetadataCatalog.get(name)
        category_ids: dict[int, int] = {}
        for kind in ("stuff", "thing"):
            ids = metadata.get(f"{kind}_dataset_id_to_contiguous_id", None) or {}
            category_ids |= {contiguous: of_dataset for of_dataset, contiguous in ids.items()}
        records = DatasetCatalog.get(name)
        if not category_ids or any("image_id" not in record for record in records):
            raise ValueError(
                f"--dataset: {name!r} has no ids of categories and images; expected a panoptic or "
                "instance dataset."
            )
        images = ((record["file_name"], record["image_id"]) for record in records)
        return cls(name, category_ids, _by_name(images))

    @classmethod
    def of_json(cls, path: Path, class_names: Sequence[str]) -> DatasetIds:
        """Read the ids of a panoptic or instance COCO JSON; classes are matched by name.

        Args:
            path: The JSON file; its ``images`` need ``file_name`` and ``id``.
            class_names: Names of the model's K classes.

        Raises:
            FileNotFoundError: If the file is missing.
            ValueError: If it is not a COCO JSON, or has none of the classes.
        """
        content = _read(path)
        panoptic = all("isthing" in entry for entry in content["categories"])
        classes = classes_of_json(path, content, "panoptic" if panoptic else "instances")
        ids = {category.name: int(category.id or 0) for category in classes}
        category_ids = {i: ids[name] for i, name in enumerate(class_names) if name in ids}
        if not category_ids:
            raise ValueError(
                f"{path}: none of its categories ({', '.join(list(ids)[:8])}) is a class of the "
                f"model ({', '.join(class_names[:8])}): the names must be the same."
            )
        images = ((image["file_name"], image["id"]) for image in content["images"])
        return cls(str(path), category_ids, _by_name(images))

    def check_classes(self, class_ids: Iterable[int], class_names: Sequence[str]) -> None:
        """Check that classes have a category id.

        Raises:
            ValueError: If some have none; the message names the first.
        """
        missing = [class_names[i] for i in class_ids if i not in self.category_ids]
        if missing:
            raise ValueError(
                f"{self.source} has no category for {len(missing)} classes of the model, such as "
                f"{missing[0]!r}: use a model that was trained on the classes of this dataset."
            )

    def image_id(self, file: Path) -> ImageId:
        """Find the id of an image by its file name, and by its folders if several share the name.

        Raises:
            ValueError: If no image or more than one matches.
        """
        candidates = self._images.get(file.name, [])
        agreement = [_common_ending(file.absolute(), path) for path, _ in candidates]
        best = [c for c, n in zip(candidates, agreement, strict=True) if n == max(agreement)]
        if len(best) != 1:
            found = "no image" if not best else f"{len(best)} images"
            raise ValueError(
                f"{self.source} has {found} named {file.name}; expected one: give the dataset of "
                "these images, and keep its folder structure."
            )
        return best[0][1]


def _read(path: Path) -> dict[str, Any]:
    """Read a COCO JSON, which may lack annotations, as those of test sets do."""
    content = read_json(path, DATASET_BYTES)
    for key, name in {"images": "file_name", "categories": "name"}.items():
        entries = content.get(key) if isinstance(content, dict) else None
        if not entries or not isinstance(entries, list) or not all(map(_is_named, entries)):
            raise UnreadableFile(
                f"{path}: expected COCO's `{key}`, each with {name} (text) and id (a number, or "
                "text)."
            )
    return content


def _is_named(entry: Any) -> bool:
    """Check that an entry of a COCO JSON has an id and a name of the right types."""
    if not isinstance(entry, dict) or type(entry.get("id")) not in (int, str):
        return False
    return isinstance(entry.get("file_name", entry.get("name")), str)


def _by_name(images: Iterable[tuple[str, ImageId]]) -> dict[str, list[tuple[Path, ImageId]]]:
    named: dict[str, list[tuple[Path, ImageId]]] = {}
    for name, image_id in images:
        named.setdefault(Path(name).name, []).append((Path(name), image_id))
    return named


def _common_ending(one: Path, other: Path) -> int:
    """Count the parts that two paths have in common at their end."""
    pairs = zip(reversed(one.parts), reversed(other.parts), strict=False)
    count = 0
    for a, b in pairs:
        if a != b:
            break
        count += 1
    return count
