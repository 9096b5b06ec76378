"""The classes of a user's own data: from a text file, or from the `categories` of a COCO JSON."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .catalog import Category

__all__ = ["classes_of_json", "read_classes"]

_LINE = re.compile(r"(?:(?P<id>\d+)\s*:\s*)?(?P<name>.*?)(?:\s+#(?P<color>[0-9a-fA-F]{6}))?")
_FORM = "expected 'NAME', 'VALUE: NAME' or either with a colour '#RRGGBB' behind it"


def read_classes(source: str | Path | Sequence[str | Category]) -> list[Category]:
    """Classes from a text file of one a line, or from a list of such lines.

    A line is a name, and where they are wanted the pixel value that stands for the class in label
    maps before it and a colour behind it: `road`, `7: road`, `7: road #804080`. Empty lines are
    left out.

    Args:
        source: a file, or lines; `Category` objects are taken as they are.

    Returns:
        the classes in the order of the lines; `id` is the pixel value, None where none is given.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no class, a line is of another form, a name or value is there twice,
            or only some lines have a value, or a colour.
    """
    where = str(source) if isinstance(source, str | Path) else "classes"
    lines = _lines(Path(source)) if isinstance(source, str | Path) else source
    classes = [
        line if isinstance(line, Category) else _category(line, f"{where}, line {number}")
        for number, line in enumerate(lines, start=1)
        if isinstance(line, Category) or line.strip()
    ]
    if not classes:
        raise ValueError(f"{where} has no class; {_FORM}, one a line.")
    _check_all_or_none([c.id for c in classes], where, "a pixel value ('VALUE: NAME')")
    _check_all_or_none([c.color for c in classes], where, "a colour ('NAME #RRGGBB')")
    _check_once([c.name for c in classes], where, "name")
    _check_once([c.id for c in classes if c.id is not None], where, "pixel value")
    return classes


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}, the file of class names, is not there.")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no UTF-8 text ({error}): save it as UTF-8.") from error


def _category(line: str, where: str) -> Category:
    found = _LINE.fullmatch(line.strip())
    if found is None or not found["name"]:
        raise ValueError(f"{where}: found {line.strip()!r}, {_FORM}.")
    value, color = found["id"], found["color"]
    return Category(
        name=found["name"],
        id=None if value is None else int(value),
        color=None if color is None else list(bytes.fromhex(color)),
    )


def _check_all_or_none(values: Sequence[object], where: str, what: str) -> None:
    have = sum(value is not None for value in values)
    if 0 < have < len(values):
        raise ValueError(
            f"{where}: {have} of {len(values)} classes have {what}; expected all of them, or none."
        )


def _check_once(values: Sequence[str] | Sequence[int], where: str, what: str) -> None:
    twice = sorted({value for value in values if list(values).count(value) > 1}, key=str)
    if twice:
        raise ValueError(f"{where}: the {what} {twice[0]!r} is there more than once.")


def classes_of_json(path: Path, content: dict[str, Any], kind: str) -> list[Category]:
    """The `categories` of a COCO JSON, by ascending id; all are things in kind "instances".

    Raises:
        ValueError: there is none, one lacks `id`, `name` or (panoptic) `isthing`, or an id is there
            twice.
    """
    needed = {"id": int, "name": str} | ({"isthing": int} if kind == "panoptic" else {})
    if not content.get("categories"):
        raise ValueError(f"{path}: found no `categories`, expected at least one class there.")
    for entry in content["categories"]:
        wrong = [key for key in needed if not isinstance(entry.get(key), needed[key])]
        if wrong:
            raise ValueError(
                f"{path}: the category {json.dumps(entry)[:200]} lacks `{wrong[0]}`; every one "
                f"needs {', '.join(f'`{key}` ({needed[key].__name__})' for key in needed)}."
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
