"""Append-only JSON Lines files with one record per image, merged at the end of a run.

A folder ``records`` has a file for each format and process, with a JSON line ``[NAME, RECORD]`` for
each image. Lines are only appended, so a run that is killed loses at most one image.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["RecordFile", "RecordIndex"]


class RecordFile:
    """Record file to which one process appends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
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
        for path in sorted(folder.glob(f"{format_name}.*jsonl")):
            with path.open("rb") as file:
                self._index(path, file)

    def _index(self, path: Path, file: IO[bytes]) -> None:
        decoder, offset = json.JSONDecoder(), 0
        for line in file:
            if line.endswith(b"\n"):  # another process may be writing its last line
                name, _ = decoder.raw_decode(line.decode(), 1)
                self._positions[name] = path, offset
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
                yield json.loads(files[path].readline())[1]
        finally:
            for file in files.values():
                file.close()
