"""Results of any number of pictures in a folder, in the formats that are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from mask_former.structures import RESULTS
from mask_former.utils.atomic_files import replace_file

from .arrays import ResultArrays
from .coco import CategoryIds, categories, instance_records, panoptic_record, resolve_category_ids
from .files import FORMATS, DrawOptions, missing_result, save_overlay, save_semantic
from .npz import save_npz
from .records import RecordFile, RecordIndex

__all__ = ["ResultWriter", "merge_records"]

CATEGORIES = "categories.json"
_RECORDED = {"panoptic-coco": "panoptic.json", "instances-coco": "instances.json"}
"""The formats that put all pictures into one JSON."""


class ResultWriter:
    """Writes results as they come; of those written, it keeps no more than the names in memory.

    The folder gets, by format:

    - ``overlay``: ``overlay/NAME.png``, with several kinds ``overlay/NAME_KIND.png``.
    - ``semantic-png``: ``semantic/NAME.png``, class ids; see :func:`.files.save_semantic`.
    - ``panoptic-coco``: ``panoptic/NAME.png`` and ``panoptic.json`` (``images``, ``annotations``,
      ``categories``), COCO panoptic format.
    - ``instances-coco``: ``instances.json``, COCO's list of results.
    - ``npz``: ``npz/NAME.npz``, everything; see :func:`.npz.save_npz`.

    Category ids are the dataset's where ``category_ids`` gives them, otherwise the contiguous id
    plus 1; ``categories.json`` beside COCO's files says which. Each file is whole or not there.
    What goes into the JSONs is kept in ``records/`` and put together by :meth:`close`; more
    pictures may be added to a folder later. Several processes write to one folder with a ``part``
    each, and :func:`merge_records` then puts the JSONs together, once.
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
        """
        Args:
            folder: is made.
            formats: of :data:`FORMATS`.
            kinds: of results, for ``overlay`` and ``npz``; None: the richest and all.
            category_ids: contiguous id of a class -> category id of the dataset.
            part: what tells this process's records from those of others, such as its rank.
            drawing: how overlays are drawn.

        Raises:
            ValueError: for an unknown format or kind.
        """
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
        """Whether the folder had all of this picture when the writer was made: go on after it."""
        return all(name in known for known in self._known.values()) and all(
            path.is_file() for path in self._paths(name)
        )

    def write(
        self, result: ResultArrays, name: str, image_id: int | str | None = None
    ) -> list[Path]:
        """Write the result of one picture; what was there under its name is replaced.

        Args:
            result: of the picture.
            name: of its files, without suffix, with "/" between folders; each picture's own.
            image_id: of the picture in its dataset, for COCO's formats; by default the name.

        Returns:
            the files of this picture.

        Raises:
            ValueError: a result that a format needs is not there, or a class has no category id.
        """
        image_id = name if image_id is None else image_id
        paths = self._paths(name)
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        there = iter(paths)
        for format_name in self.formats:
            if format_name == "overlay":
                kinds: Sequence[str | None] = self.kinds or [None]
                for kind in kinds:
                    save_overlay(result, next(there), kind, self._drawing)
            elif format_name == "semantic-png":
                save_semantic(result, next(there))
            elif format_name == "npz":
                save_npz(result, next(there), self.kinds)
            elif format_name == "panoptic-coco":
                self._files[format_name].add(name, self._panoptic(result, next(there), image_id))
            else:
                self._files[format_name].add(name, self._instances(result, name, image_id))
        return paths

    def _paths(self, name: str) -> list[Path]:
        """The files of a picture, in the order of the formats."""
        if PurePosixPath(name).is_absolute() or ".." in Path(name).parts or not name:
            raise ValueError(f"The name {name!r} leads out of the folder {self.folder}.")
        endings = [f"_{kind}.png" for kind in self.kinds or ()]
        files = {
            "overlay": [f"overlay/{name}{e}" for e in (endings if len(endings) > 1 else [".png"])],
            "semantic-png": [f"semantic/{name}.png"],
            "panoptic-coco": [f"panoptic/{name}.png"],
            "npz": [f"npz/{name}.npz"],
        }
        return [self.folder / file for f in self.formats for file in files.get(f, ())]

    def _ids(self, result: ResultArrays) -> CategoryIds:
        """Category ids of the classes, the same for the whole folder, which has them in a file."""
        if self._resolved is None:
            ids = resolve_category_ids(result.classes, self._category_ids)
            path, found = self.folder / CATEGORIES, categories(result.classes, ids)
            if not path.is_file():
                text = json.dumps(found)
                replace_file(path, lambda part: part.write_text(text, encoding="utf-8"))
            elif json.loads(path.read_text(encoding="utf-8")) != found:
                raise ValueError(
                    f"{path} has other categories than these results: they are of other classes, "
                    "colours or category_ids. Take another folder."
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
        """End the records; without a ``part``, put the JSONs together."""
        for file in self._files.values():
            file.close()
        if self._part is None:
            merge_records(self.folder, self._recorded)


def merge_records(folder: str | Path, formats: Iterable[str] = tuple(_RECORDED)) -> list[Path]:
    """Put COCO's JSONs together from the records of all parts, pictures in the order of names.

    Args:
        folder: of one or several :class:`ResultWriter`.
        formats: of those that have a JSON; one without records is passed over.

    Returns:
        the JSONs.
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
    """The text of the JSON, in pieces: it need not fit into memory."""
    yield '{"images": ['
    yield from _joined(record["image"] for record in index.records())
    yield '], "annotations": ['
    yield from _joined(record["annotation"] for record in index.records())
    yield f'], "categories": {(folder / CATEGORIES).read_text(encoding="utf-8")}}}'


def _instances_json(index: RecordIndex, folder: Path) -> Iterator[str]:
    yield "["
    yield from _joined(chain.from_iterable(index.records()))
    yield "]"


_JSONS = {"panoptic-coco": _panoptic_json, "instances-coco": _instances_json}


def _joined(values: Iterable[Any]) -> Iterator[str]:
    for index, value in enumerate(values):
        yield ",\n" * (index > 0) + json.dumps(value)


def _write_pieces(path: Path, pieces: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(pieces)


def _check(found: Iterable[str], known: Sequence[str], what: str) -> None:
    unknown = [name for name in found if name not in known]
    if unknown:
        raise ValueError(f"There is no {what} {unknown[0]!r}; there are {', '.join(known)}.")
