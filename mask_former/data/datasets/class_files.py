"""Read the classes of a custom dataset from a text file or the ``categories`` of a COCO JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mask_former.utils.bounded_files import read_text
from mask_former.utils.errors import short

from .table import Category

__all__ = ["classes_of_json", "read_classes"]

_LINE = re.compile(
    r"(?:(?P<id>\d+)\s*:\s*)?(?P<name>(?:\S+(?:\s+\S+)*?)?)(?:\s+#(?P<color>[0-9a-fA-F]{6}))?"
)
_MOST_DIGITS = 9
_FORM = "expected 'NAME' or 'VALUE: NAME', optionally followed by a colour '#RRGGBB'"


def read_classes(source: str | Path | Sequence[str | Category]) -> list[Category]:
    """Read classes from a text file with one class per line, or from a list of such lines.

    A line is a name, optionally preceded by the pixel value of the class in label maps and followed
    by a colour: ``road``, ``7: road``, ``7: road #804080``. Empty lines are skipped.

    Args:
        source: a file, or lines; ``Category`` objects are returned unchanged.

    Returns:
        The classes in the order of the lines; ``id`` is the pixel value, or None if there is none.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if there is no class, a line has another form, a name or value occurs twice, or
            only some of the lines have a value or a colour.
    """
    where = str(source) if isinstance(source, str | Path) else "classes"
    lines = _lines(Path(source)) if isinstance(source, str | Path) else source
    classes = {
        number: line if isinstance(line, Category) else _category(line, f"{where}, line {number}")
        for number, line in enumerate(lines, start=1)
        if isinstance(line, Category) or line.strip()
    }
    if not classes:
        raise ValueError(f"{where} has no class; {_FORM}, one per line.")
    ids = {number: c.id for number, c in classes.items()}
    _check_all_or_none(ids, where, "a pixel value ('VALUE: NAME')")
    colors = {number: c.color for number, c in classes.items()}
    _check_all_or_none(colors, where, "a colour ('NAME #RRGGBB')")
    _check_once([c.name for c in classes.values()], where, "name")
    _check_once([i for i in ids.values() if i is not None], where, "pixel value")
    return list(classes.values())


def _lines(path: Path) -> list[str]:
    if not path.exists():
        raise FileNotFoundError(f"{path}, the file of class names, is missing.")
    return read_text(path).splitlines()


def _category(line: str, where: str) -> Category:
    found = _LINE.fullmatch(line.strip())
    if found is None or not found["name"] or len(found["id"] or "") > _MOST_DIGITS:
        raise ValueError(f"{where}: found {short(line.strip())!r}, {_FORM}.")
    value, color = found["id"], found["color"]
    return Category(
        name=found["name"],
        id=None if value is None else int(value),
        color=None if color is None else list(bytes.fromhex(color)),
    )


def _check_all_or_none(values: Mapping[int, object], where: str, what: str) -> None:
    without = [number for number, value in values.items() if value is None]
    if 0 < len(without) < len(values):
        raise ValueError(
            f"{where}: {len(values) - len(without)} of {len(values)} classes have {what}, but the "
            f"class in line {without[0]} does not; expected all of them, or none."
        )


def _check_once(values: Sequence[str] | Sequence[int], where: str, what: str) -> None:
    twice = sorted((value for value, count in Counter(values).items() if count > 1), key=str)
    if twice:
        raise ValueError(f"{where}: the {what} {twice[0]!r} occurs more than once.")


def classes_of_json(path: Path, content: dict[str, Any], kind: str) -> list[Category]:
    """Read the ``categories`` of a COCO JSON, ordered by id.

    Args:
        path: the JSON, for error messages.
        content: its content.
        kind: "panoptic", or "instances", whose classes are all things.

    Raises:
        ValueError: if there is no category, one lacks ``id``, ``name`` or (panoptic) ``isthing``,
            or an id occurs twice.
    """
    needed = {"id": int, "name": str} | ({"isthing": int} if kind == "panoptic" else {})
    if not content.get("categories") or not isinstance(content["categories"], list):
        raise ValueError(f"{path}: `categories` is missing or empty, expected one class or more.")
    for entry in content["categories"]:
        known = entry if isinstance(entry, dict) else {}
        wrong = [key for key in needed if not isinstance(known.get(key), needed[key])]
        if wrong:
            raise ValueError(
                f"{path}: the category {json.dumps(entry)[:200]} lacks `{wrong[0]}`; each needs "
                f"{', '.join(f'`{key}` ({needed[key].__name__})' for key in needed)}."
            )
    entries = sorted(content["categories"], key=lambda entry: entry["id"])
    _check_once([entry["id"] for entry in entries], f"{path}: `categories`", "id")
    colored = all(_is_color(entry.get("color")) for entry in entries)
    return [
        Category(
            name=entry["name"],
            id=entry["id"],
            color=entry["color"] if colored else None,
            isthing=bool(entry["isthing"]) if kind == "panoptic" else True,
        )
        for entry in entries
    ]


def _is_color(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and all(isinstance(c, int) and 0 <= c <= 255 for c in value)
    )
