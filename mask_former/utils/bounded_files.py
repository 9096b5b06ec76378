"""Read files of unknown origin with bounds on size, depth and time.

All files that are not written by this process (configs, tables, annotations, results, images) are
read here. Only regular files and links to them are opened: a named pipe or a device would block, or
never end.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from .errors import short

__all__ = [
    "DATASET_BYTES",
    "UnreadableFile",
    "check_regular",
    "parse_json",
    "parse_yaml",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
]

_SETTINGS_BYTES = 16 << 20
"""Largest file of settings, such as a config or a table."""
DATASET_BYTES = 4 << 30
"""Largest file of a dataset: an image, or the annotations of all images."""
_DEPTH = 50
"""Most levels of lists and mappings; COCO's annotations have 6."""
_BITS = 10_000
"""Largest integer of a YAML; those of a JSON may have 4,300 digits, some 14,000 bits."""
_TOO_DEEP = f"it has more than {_DEPTH} levels of lists and mappings in one another"
_YAML_BYTES = 64 << 10
"""Longest YAML: a complete config has 20 KiB, and PyYAML needs 8 seconds for the worst 64."""
_YAML_ITEMS = 100_000
"""Most values of a YAML, with its aliases written out; a complete config has some 500."""


class UnreadableFile(ValueError):
    """A file that is refused or damaged; the message names it, the reason, and the fix."""


def read_bytes(path: str | Path, most: int = DATASET_BYTES) -> bytes:
    """Read a regular file.

    Args:
        path: the file, or a link to it.
        most: largest size in bytes.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: if it is not a regular file, or larger than ``most``.
    """
    check_regular(path)
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size > most:
            raise UnreadableFile(
                f"{path} was refused: it has {status.st_size} bytes, expected at most {most}. Is "
                "it another file?"
            )
        # Not more than the file claims: files of the kernel claim nothing and never end.
        return file.read(status.st_size)


def check_regular(path: str | Path) -> None:
    """Refuse everything but regular files and links to them, without opening it.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: if it is a folder, a named pipe, a socket or a device.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise UnreadableFile(
            f"{path} was refused: it is {kind}, expected a regular file. Name the file itself, or "
            "copy the content into one."
        )


def read_text(path: str | Path, most: int = _SETTINGS_BYTES) -> str:
    """Read a regular file of UTF-8 text; a byte order mark is dropped.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: as ``read_bytes`` does, or if the file is not UTF-8 text.
    """
    try:
        return read_bytes(path, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnreadableFile(f"{path} is not UTF-8 text ({error}): save it as UTF-8.") from error


def read_json(path: str | Path, most: int = _SETTINGS_BYTES) -> Any:
    """Read a JSON.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: as ``read_text`` and ``parse_json`` do.
    """
    return parse_json(read_text(path, most), path)


def parse_json(text: str, source: str | Path) -> Any:
    """Parse the text of a JSON.

    Args:
        text: the JSON.
        source: the file that it comes from, for the message.

    Raises:
        UnreadableFile: if it is not JSON, or nested too deeply.
    """
    try:
        content = json.loads(text)
        _check_tree(content)
    except (ValueError, RecursionError) as error:
        reason = _TOO_DEEP if isinstance(error, RecursionError) else short(str(error), 300)
        raise UnreadableFile(f"{source} is not a JSON file ({reason}): restore it.") from error
    return content


def read_yaml(path: str | Path, name: str = "") -> Any:
    """Read a YAML of plain data.

    Args:
        path: the file.
        name: the file as the message names it; by default its path.

    Raises:
        FileNotFoundError: if the file is missing.
        UnreadableFile: as ``read_text`` and ``parse_yaml`` do.
    """
    return parse_yaml(read_bytes(path, _YAML_BYTES), name or path)


def parse_yaml(text: str | bytes, source: str | Path) -> Any:
    """Parse the text of a YAML: plain data, without repeated keys or merge keys (``<<``).

    Args:
        text: the YAML, or its bytes in UTF-8.
        source: the file that it comes from, for the message.

    Raises:
        UnreadableFile: if it is not such a YAML, is too long or nested too deeply, or its aliases
            (``*name``) stand for too many values.
    """
    try:
        if len(text) > _YAML_BYTES:
            raise ValueError(f"it has {len(text)} characters, expected at most {_YAML_BYTES}")
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        content = yaml.load(text, _PlainLoader)
        _check_tree(content, _YAML_ITEMS)
    except Exception as error:  # PyYAML raises almost any type for values such as !!bool x
        reason = _TOO_DEEP if isinstance(error, RecursionError) else str(error)
        raise UnreadableFile(f"{source} is not plain YAML: {short(reason, 500)}") from error
    return content


class _PlainLoader(yaml.SafeLoader):
    """PyYAML's safe loader without repeated keys and merge keys.

    Of the values of a repeated key PyYAML uses the last, and merge keys multiply mappings.
    """

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level >= _DEPTH:  # the time of the scanner grows with the square of it
            raise yaml.YAMLError(_TOO_DEEP)
        super().fetch_flow_collection_start(token)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > _BITS:  # Python cannot show it in a message
            raise yaml.YAMLError(f"an integer has {value.bit_length()} bits,{node.start_mark}")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.tag == "tag:yaml.org,2002:merge":
                raise yaml.YAMLError(f"write out what the merge key << stands for,{key.start_mark}")
            if key.value in seen:
                raise yaml.YAMLError(f"the key {short(key.value)} occurs twice,{key.start_mark}")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_PlainLoader.add_constructor("tag:yaml.org,2002:int", _PlainLoader.construct_yaml_int)


def _check_tree(content: Any, most: float = float("inf")) -> None:
    """Check the depth and the number of values of nested lists and dicts, level by level.

    A value to which several others refer counts each time, as if it were written out.

    Raises:
        ValueError: if there are too many.
    """
    level, count = list(_containers([content])), 0
    for _ in range(_DEPTH):
        count += sum(map(len, level))
        if count > most:
            raise ValueError(f"it stands for more than {most} values: use fewer aliases")
        level = [child for node in level for child in _containers(node)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


_NESTED = frozenset({dict, list, set, tuple})


def _containers(node: Any) -> Iterator[Any]:
    """Yield the values of a list, dict, set or tuple that are such themselves."""
    values = node.values() if isinstance(node, dict) else node
    if not _NESTED.isdisjoint(map(type, values)):  # lists of numbers are long
        yield from (value for value in values if type(value) in _NESTED)
