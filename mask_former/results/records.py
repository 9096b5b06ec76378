"""Append-only JSON Lines files with one record per image, merged at the end of a run.

A folder ``records`` has a file for each format and process, with a JSON line ``[NAME, RECORD]`` for
each image. Lines are only appended, so a run that is killed loses at most one image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mask_former.utils.bounded_files import UnreadableFile, check_regular, parse_json
from mask_former.utils.errors import short

__all__ = ["RecordFile", "RecordIndex"]


_KINDS: dict[str, type] = {"panoptic-coco": dict, "instances-coco": list}
"""Type of the record of an image, by format."""


class RecordFile:
    """Record file to which one process appends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            check_regular(path)
            _drop_torn_line(path)
        self._file = path.open("ab")

    def add(self, name: str, record: Any) -> None:
        """Append the record of an image; it replaces an earlier record of the same name."""
        self._file.write(json.dumps([name, record]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_torn_line(path: Path) -> None:
    """Remove an incomplete last line."""
    with path.open("rb+") as file:
        end = 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)


class RecordIndex:
    """Positions of all records of a format, by image name."""

    def __init__(self, folder: Path, format_name: str) -> None:
        self._positions: dict[str, tuple[Path, int]] = {}
        self._kind = _KINDS[format_name]
        for path in sorted(folder.glob(f"{format_name}.*jsonl")):
            check_regular(path)
            with path.open("rb") as file:
                self._index(path, file)

    def _index(self, path: Path, file: IO[bytes]) -> None:
        offset = 0
        for line in file:
            if line.endswith(b"\n"):  # another process may be writing its last line
                self._positions[_name_in(line, path)] = path, offset
            offset += len(line)

    def __contains__(self, name: str) -> bool:
        return name in self._positions

    def __len__(self) -> int:
        return len(self._positions)

    def records(self) -> Iterator[Any]:
        """Yield the records one at a time, sorted by name."""
        files: dict[Path, IO[bytes]] = {}
        try:
            for _, (path, offset) in sorted(self._positions.items()):
                if path not in files:
                    files[path] = path.open("rb")
                files[path].seek(offset)
                yield _record_in(files[path].readline(), path, self._kind)
        finally:
            for file in files.values():
                file.close()


def _name_in(line: bytes, path: Path) -> str:
    """Parse the name at the start of a line; its record may be long."""
    try:
        name, _ = json.JSONDecoder().raw_decode(line.decode(), 1)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, line) from error
    if not isinstance(name, str):
        raise _damaged(path, line)
    return name


def _record_in(line: bytes, path: Path, kind: type) -> Any:
    """Parse a line, and return the record after the name."""
    found = parse_json(line.decode(errors="replace"), path)
    if not isinstance(found, list) or len(found) != 2 or not isinstance(found[1], kind):
        raise _damaged(path, line)
    return found[1]


def _damaged(path: Path, line: bytes) -> UnreadableFile:
    return UnreadableFile(
        f"{path} has the line {short(line)}, expected [NAME, RECORD], as earlier runs write it: "
        "remove the file, or write into another folder."
    )
