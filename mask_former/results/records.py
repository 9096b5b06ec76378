"""What has been found in many pictures, kept on disk as it comes and put together at the end.

A folder ``records`` has one file a format and part: a line ``[NAME, RECORD]`` of JSON a picture.
Lines are only ever added, so a run that is killed loses at most the picture at hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

__all__ = ["RecordFile", "RecordIndex"]


class RecordFile:
    """The file that one process adds to."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            _drop_torn_line(path)
        self._file = path.open("ab")

    def add(self, name: str, record: Any) -> None:
        """Write what has been found in a picture; what was there of it before is void."""
        self._file.write(json.dumps([name, record]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _drop_torn_line(path: Path) -> None:
    """Cut off a last line that was not written to its end."""
    with path.open("rb+") as file:
        end = 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)


class RecordIndex:
    """Where the record of each picture is: of all files of a format, by name."""

    def __init__(self, folder: Path, format_name: str) -> None:
        self._places: dict[str, tuple[Path, int]] = {}
        for path in sorted(folder.glob(f"{format_name}.*jsonl")):
            with path.open("rb") as file:
                self._index(path, file)

    def _index(self, path: Path, file: IO[bytes]) -> None:
        decoder, offset = json.JSONDecoder(), 0
        for line in file:
            if line.endswith(b"\n"):  # another process may be at its last
                name, _ = decoder.raw_decode(line.decode(), 1)
                self._places[name] = path, offset
            offset += len(line)

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __len__(self) -> int:
        return len(self._places)

    def records(self) -> Iterator[Any]:
        """What was found in each picture, in the order of their names, one at a time."""
        files: dict[Path, IO[bytes]] = {}
        try:
            for _, (path, offset) in sorted(self._places.items()):
                if path not in files:
                    files[path] = path.open("rb")
                files[path].seek(offset)
                yield json.loads(files[path].readline())[1]
        finally:
            for file in files.values():
                file.close()
