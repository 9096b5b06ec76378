"""Write the results of any number of images into a folder, in one or more formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from mask_former.structures import RESULTS
from mask_former.utils.atomic_files import replace_file, replace_text
from mask_former.utils.bounded_files import read_json

from .arrays import ResultArrays
from .coco import CategoryIds, categories, instance_records, panoptic_record, resolve_category_ids
from .files import FORMATS, DrawOptions, missing_result, save_overlay, save_semantic
from .npz import save_npz
from .records import RecordFile, RecordIndex

__all__ = ["ResultWriter", "merge_records"]

CATEGORIES = "categories.json"
_RECORDED = {"panoptic-coco": "panoptic.json", "instances-coco": "instances.json"}
"""Formats that collect all images in one JSON file, and the name of that file."""


class ResultWriter:
    """Writer of results into one folder; it keeps only the names of written images in memory.

    The files of each format:

    - ``overlay``: ``overlay/NAME.png``, or ``overlay/NAME_KIND.png`` for several kinds.
    - ``semantic-png``: ``semantic/NAME.png``, class ids; see :func:`.files.save_semantic`.
    - ``panoptic-coco``: ``panoptic/NAME.png`` and ``panoptic.json`` (``images``, ``annotations``,
      ``categories``), COCO panoptic format.
    - ``instances-coco``: ``instances.json``, COCO's list of results.
    - ``npz``: ``npz/NAME.npz``, all arrays; see :func:`.npz.save_npz`.

    Category ids are those of ``category_ids``, by default the contiguous ids plus 1;
    ``categories.json`` next to COCO's files lists them. Every file is written atomically. Records
    for the JSON files are kept in ``records/``, and :meth:`close` merges them; more images can be
    added to a folder later. Several processes can write into one folder, each with its own
    ``part``; :func:`merge_records` must then be called once, at the end.

    Args:
        folder: Folder to write into; it is created.
        formats: Names from :data:`FORMATS`.
        kinds: Kinds of results for ``overlay`` and ``npz``. Default: the richest kind for
            ``overlay``, all kinds for ``npz``.
        category_ids: Category id of the dataset by contiguous class id.
        part: Name of this process's records, such as its rank, if several processes write.
        drawing: Options of the drawings.

    Raises:
        ValueError: if a format or kind is unknown.
    """

    def __init__(
        self,
        folder: str | Path,
        formats: Sequence[str],
        *,
        kinds: Sequence[str] | None = None,
        category_ids: Mapping[int, int] | None = None,
        part: int | str | None = None,
        drawing: DrawOptions | None = None,
    ) -> None:
        _check(formats, FORMATS, "format")
        _check(kinds or (), tuple(RESULTS), "kind of result")
        self.folder = Path(folder).expanduser()
        self.formats = list(dict.fromkeys(formats))
        self.kinds = None if kinds is None else list(dict.fromkeys(kinds))
        self._category_ids = category_ids
        self._drawing: DrawOptions = drawing or {}
        self._part = part
        self._resolved: CategoryIds | None = None
        self._recorded = [name for name in self.formats if name in _RECORDED]
        ending = "jsonl" if part is None else f"{part}.jsonl"
        records = self.folder / "records"
        self._files = {n: RecordFile(records / f"{n}.{ending}") for n in self._recorded}
        self._known = {name: RecordIndex(records, name) for name in self._recorded}

    def __enter__(self) -> ResultWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def has(self, name: str) -> bool:
        """Return True if an earlier run wrote all files and records of this image."""
        return all(name in known for known in self._known.values()) and all(
            path.is_file() for path in self._paths(name)
        )

    def write(
        self, result: ResultArrays, name: str, image_id: int | str | None = None
    ) -> list[Path]:
        """Write the result of one image; it replaces an earlier result of the same name.

        Args:
            result: The image's result.
            name: Unique stem of the image's files, which may contain folders ("a/b").
            image_id: The image's id in its dataset, for COCO's formats. Default: the name.

        Returns:
            The files of this image.

        Raises:
            ValueError: if a result that a format needs is missing, or a class has no category id.
        """
        image_id = name if image_id is None else image_id
        paths = self._paths(name)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        files = iter(paths)
        for format_name in self.formats:
            if format_name == "overlay":
                kinds: Sequence[str | None] = self.kinds or [None]
                for kind in kinds:
                    save_overlay(result, next(files), kind, self._drawing)
            elif format_name == "semantic-png":
                save_semantic(result, next(files))
            elif format_name == "npz":
                save_npz(result, next(files), self.kinds)
            elif format_name == "panoptic-coco":
                self._files[format_name].add(name, self._panoptic(result, next(files), image_id))
            else:
                self._files[format_name].add(name, self._instances(result, name, image_id))
        return paths

    def _paths(self, name: str) -> list[Path]:
        """List the files of an image, in the order of the formats."""
        if PurePosixPath(name).is_absolute() or ".." in Path(name).parts or not name:
            raise ValueError(
                f"The name {name!r} is empty or lies outside the folder {self.folder}: expected a "
                "relative name without '..'."
            )
        endings = [f"_{kind}.png" for kind in self.kinds or ()]
        files = {
            "overlay": [f"overlay/{name}{e}" for e in (endings if len(endings) > 1 else [".png"])],
            "semantic-png": [f"semantic/{name}.png"],
            "panoptic-coco": [f"panoptic/{name}.png"],
            "npz": [f"npz/{name}.npz"],
        }
        return [self.folder / file for f in self.formats for file in files.get(f, ())]

    def _ids(self, result: ResultArrays) -> CategoryIds:
        """Return the category ids, which must be the same for all results of the folder."""
        if self._resolved is None:
            ids = resolve_category_ids(result.classes, self._category_ids)
            path, found = self.folder / CATEGORIES, categories(result.classes, ids)
            if not path.is_file():
                text = json.dumps(found)
                replace_text(path, text)
            elif read_json(path) != found:
                raise ValueError(
                    f"{path} has other categories than these results: their classes, colours or "
                    "category_ids differ. Write into another folder."
                )
            self._resolved = ids
        return self._resolved

    def _panoptic(self, result: ResultArrays, path: Path, image_id: int | str) -> dict[str, Any]:
        if result.panoptic is None:
            raise missing_result("panoptic-coco", "panoptic", result)
        annotation = panoptic_record(result.panoptic, path, image_id, self._ids(result))
        annotation["file_name"] = path.relative_to(self.folder / "panoptic").as_posix()
        height, width = result.image.shape[:2]
        file_name = Path(result.file_name).name if result.file_name else annotation["file_name"]
        image = {"id": image_id, "file_name": file_name, "height": height, "width": width}
        return {"image": image, "annotation": annotation}

    def _instances(
        self, result: ResultArrays, name: str, image_id: int | str
    ) -> list[dict[str, Any]]:
        if result.instances is None:
            raise missing_result("instances-coco", "instance", result)
        return instance_records(result.instances, image_id, self._ids(result), name)

    def close(self) -> None:
        """Close the records; without a ``part``, merge them into the JSON files."""
        for file in self._files.values():
            file.close()
        if self._part is None:
            merge_records(self.folder, self._recorded)


def merge_records(folder: str | Path, formats: Iterable[str] = tuple(_RECORDED)) -> list[Path]:
    """Merge the records of all parts into COCO's JSON files, with images sorted by name.

    Args:
        folder: Folder of one or several :class:`ResultWriter`.
        formats: Formats with a JSON file; those without records are skipped.

    Returns:
        The JSON files that were written.
    """
    folder, written = Path(folder).expanduser(), []
    for name in formats:
        index = RecordIndex(folder / "records", name)
        if len(index):
            pieces = _JSONS[name](index, folder)
            path = folder / _RECORDED[name]
            replace_file(path, partial(_write_pieces, pieces=pieces))
            written.append(path)
    return written


def _panoptic_json(index: RecordIndex, folder: Path) -> Iterator[str]:
    """Yield the JSON text in pieces, because it may not fit into memory."""
    yield '{"images": ['
    yield from _joined(record["image"] for record in index.records())
    yield '], "annotations": ['
    yield from _joined(record["annotation"] for record in index.records())
    yield f'], "categories": {json.dumps(read_json(folder / CATEGORIES))}}}'


def _instances_json(index: RecordIndex, folder: Path) -> Iterator[str]:
    yield "["
    yield from _joined(chain.from_iterable(index.records()))
    yield "]"


_JSONS = {"panoptic-coco": _panoptic_json, "instances-coco": _instances_json}


def _joined(values: Iterable[Any]) -> Iterator[str]:
    for index, value in enumerate(values):
        yield ",\n" * (index > 0) + json.dumps(value)


def _write_pieces(part: Path, pieces: Iterable[str]) -> None:
    with part.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def _check(found: Iterable[str], known: Sequence[str], what: str) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(f"There is no {what} {unknown[0]!r}; expected one of {', '.join(known)}.")
