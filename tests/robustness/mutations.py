"""Random damage to the content of files, reproducible from a seed."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

__all__ = ["STRUCTURAL", "mutate_bytes", "mutate_structure"]

WRONG_VALUES = [
    None, True, -1, 0, 10**30, 1.5, math.nan, math.inf, "", "x", "\x00", "../../x", [], {}, [None],
    {"a": 1}, [[[]]], "9" * 400,
]  # fmt: skip
WRONG_FILES = [
    b"\n",
    b"hello\n",
    b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n",
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0\x00\x10JFIF",
    b"PK\x03\x04",
    b"\x1f\x8b\x08\x00",
    b"\x80\x05.",
    b"[]",
    b"null",
    b"\x00" * 4096,
    b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
]
"""Files that may replace another one: error pages, Git LFS pointers, headers of other formats."""


def _offset(data: bytes, rng: random.Random) -> int:
    """Draw a byte offset; half of them are in the first or last 64 bytes, which matter most."""
    part = rng.random()
    if part < 0.3:
        return rng.randrange(min(len(data), 64))
    if part < 0.5:
        return len(data) - 1 - rng.randrange(min(len(data), 64))
    return rng.randrange(len(data))


def _empty(data: bytes, rng: random.Random) -> bytes:
    return b""


def _truncated(data: bytes, rng: random.Random) -> bytes:
    return data[: _offset(data, rng)]


def _flipped(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        changed[_offset(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _overwritten(data: bytes, rng: random.Random) -> bytes:
    start, length = _offset(data, rng), rng.choice([1, 8, 64, 512])
    new = rng.choice([bytes(length), b"\xff" * length, rng.randbytes(length)])
    return (data[:start] + new + data[start + length :])[: len(data)]


def _cut_out(data: bytes, rng: random.Random) -> bytes:
    start = _offset(data, rng)
    return data[:start] + data[start + rng.choice([1, 8, 64, 512]) :]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    start = _offset(data, rng)
    return data[:start] + rng.randbytes(rng.choice([1, 8, 64])) + data[start:]


def _replaced(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(WRONG_FILES)


_BYTES: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": _empty,
    "truncated": _truncated,
    "flipped": _flipped,
    "overwritten": _overwritten,
    "cut out": _cut_out,
    "inserted": _inserted,
    "another file": _replaced,
}
STRUCTURAL = "structure"


def mutate_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage some bytes; return the kind of damage and the damaged content."""
    weights = [1, 4, 6, 4, 3, 3, 2]
    (kind,) = rng.choices(list(_BYTES), weights)
    return kind, _BYTES[kind](data, rng)


def mutate_structure(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Remove, duplicate or replace one value of a JSON or YAML file; return kind and content."""
    is_json = data.lstrip()[:1] in (b"{", b"[")
    content = json.loads(data) if is_json else yaml.safe_load(data)
    parent, key = rng.choice(list(_entries(content)))
    how = rng.choice(["remove", "wrong", "wrong", "wrong", "double"])
    if how == "remove":
        del parent[key]
    elif how == "double" and isinstance(parent, list):
        parent.insert(key, copy.deepcopy(parent[key]))
    else:
        parent[key] = copy.deepcopy(rng.choice(WRONG_VALUES))
    text = json.dumps(content) if is_json else yaml.safe_dump(content)
    return STRUCTURAL, text.encode()


def _entries(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key or index) of each entry of a nested structure."""
    items = list(node.items()) if isinstance(node, dict) else list(enumerate(node))
    for key, value in items:
        yield node, key
        if isinstance(value, dict | list):
            yield from _entries(value)
