"""docs/own_data.md: its tables, class files and code work."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from mask_former.data.datasets.catalog import read_table
from mask_former.data.datasets.class_files import read_classes
from tests.helpers.paths import ROOT

PAGE = (ROOT / "docs" / "own_data.md").read_text(encoding="utf-8")


def block(language: str, start: str = "") -> str:
    """Return the only fenced block of the page in this language that starts with a text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)
    (found,) = [text for text in blocks if text.startswith(start)]
    return found


def test_the_table_of_the_page_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "pets.json"
    path.write_text(block("json"))
    table = read_table(path)
    assert table.label_map == {1: 0, 2: 1, 0: 255}


def test_the_class_files_of_all_recipes_can_be_read() -> None:
    section = PAGE.split("### Which classes.txt")[1].split("\n\n")[1]
    rows = [row.split("|")[2] for row in section.splitlines()[2:]]
    recipes = [re.findall("`([^`]+)`", row) for row in rows]
    assert sum(bool(lines) for lines in recipes) >= 6
    for lines in filter(None, recipes):
        assert len(read_classes(lines)) == len(lines)


@pytest.mark.parametrize(
    ("part", "pixels", "expected"),
    [
        ("# Colours", [[128, 64, 128], [70, 70, 70], [1, 2, 3]], [0, 1, 255]),
        ("# Masks", [0, 127, 128, 255], [0, 0, 1, 1]),
        ("# Several", [0, 1, 2, 3, 4, 200], [255, 1, 2, 2, 2, 255]),
    ],
)
def test_each_conversion_gives_a_label_map(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, pixels: list, expected: list
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("label.png", "mask.png"):
        Image.fromarray(np.array([pixels], np.uint8)).save(name)
    code = block("python", "import numpy")
    imports, *parts = re.split(r"(?m)^(?=# )", code)
    (chosen,) = [text for text in parts if text.startswith(part)]
    exec(imports + chosen, {})
    assert np.asarray(Image.open("label.png")).tolist() == [expected]


def test_the_python_calls_of_the_page_exist_and_build_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in "ABCD":
        (tmp_path / folder).mkdir()
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    try:
        exec(block("python", "from mask_former.config"), names)
        assert names["cfg"].MODEL.SEM_SEG_HEAD.NUM_CLASSES == 2
        assert names["cfg"].DATASETS.TEST == ("pets_val",)
    finally:
        for name in ("pets_train", "pets_val"):
            DatasetCatalog.pop(name, None)
            MetadataCatalog.pop(name, None)
