"""Classes from a text file and from the categories of a COCO JSON."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from mask_former.data.datasets.catalog import Category
from mask_former.data.datasets.class_files import classes_of_json, read_classes


def test_a_line_is_a_name_with_optional_value_and_colour() -> None:
    assert read_classes(["sky", "traffic light"]) == [Category("sky"), Category("traffic light")]
    assert read_classes(["0: sky", "255 :  traffic light"]) == [
        Category("sky", id=0),
        Category("traffic light", id=255),
    ]
    assert read_classes(["sky #0080fF"]) == [Category("sky", color=[0, 128, 255])]
    assert read_classes(["7: no. #5 #010203"]) == [Category("no. #5", id=7, color=[1, 2, 3])]


def test_empty_lines_of_a_file_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes("\ufeffStraße\r\n\r\n  tree \n".encode())
    assert [c.name for c in read_classes(path)] == ["Straße", "tree"]


def test_categories_are_accepted_unchanged() -> None:
    assert read_classes([Category("a", id=3), "4: b"]) == [Category("a", id=3), Category("b", id=4)]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no class"),
        (["", "  "], "has no class"),
        (["a", "7:"], "line 2: found '7:', expected 'NAME'"),
        (["a", "#102030"], None),  # an odd name, but a valid one
        (["a", "b", "a"], "the name 'a' occurs more than once"),
        (["1: a", "1: b"], "the pixel value 1 occurs more than once"),
        (["1: a", "b"], "1 of 2 classes have a pixel value"),
        (["a #102030", "b"], "1 of 2 classes have a colour"),
    ],
)
def test_the_error_for_a_mistake_names_the_line_or_the_entries(
    lines: list[str], message: str | None
) -> None:
    if message is None:
        assert len(read_classes(lines)) == len(lines)
        return
    with pytest.raises(ValueError, match=message):
        read_classes(lines)


def test_a_missing_or_binary_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        read_classes(tmp_path / "nothing.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"binary\.txt is not UTF-8"):
        read_classes(tmp_path / "binary.txt")


def categories(*entries: dict[str, Any]) -> dict[str, Any]:
    return {"categories": list(entries)}


def test_categories_are_sorted_by_id_and_those_of_instances_are_things() -> None:
    content = categories({"id": 9, "name": "b"}, {"id": 2, "name": "a", "supercategory": "x"})
    assert classes_of_json(Path("x.json"), content, "instances") == [
        Category("a", id=2, isthing=True),
        Category("b", id=9, isthing=True),
    ]


def test_panoptic_categories_keep_isthing_and_their_colours() -> None:
    entries = [
        {"id": 1, "name": "sky", "isthing": 0, "color": [1, 2, 3]},
        {"id": 2, "name": "car", "isthing": 1, "color": [4, 5, 6]},
    ]
    found = classes_of_json(Path("x.json"), categories(*entries), "panoptic")
    assert [(c.isthing, c.color) for c in found] == [(False, [1, 2, 3]), (True, [4, 5, 6])]
    del entries[0]["color"]
    found = classes_of_json(Path("x.json"), categories(*entries), "panoptic")
    assert [c.color for c in found] == [None, None]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ({}, "instances", "x.json: `categories` is missing or empty"),
        (categories({"id": 1}), "instances", 'x.json: the category {"id": 1} lacks `name`'),
        (categories({"id": "1", "name": "a"}), "instances", r"lacks `id`.*`id` \(int\)"),
        (categories({"id": 1, "name": "a"}), "panoptic", "lacks `isthing`"),
        (categories(*[{"id": 1, "name": n} for n in "ab"]), "instances", "id 1 occurs more"),
    ],
)
def test_the_error_for_a_mistake_in_a_json_describes_it(
    content: dict[str, Any], kind: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        classes_of_json(Path("x.json"), content, kind)


def test_long_files_and_lines_are_read_in_time(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("\n".join(f"{i}: c{i}" for i in range(50_000)) + f"\n50000: a{' ' * 10**5}b\n")
    begin = time.monotonic()
    classes = read_classes(path)
    assert len(classes) == 50_001 and classes[-1].name == f"a{' ' * 10**5}b"
    assert time.monotonic() - begin < 5


def test_a_value_of_many_digits_is_refused() -> None:
    with pytest.raises(ValueError, match=r"classes, line 1: found '9+…', expected"):
        read_classes(["9" * 5000 + ": a"])
