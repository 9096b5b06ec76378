"""datasets/prepare_coco_stuff_10k_sem_seg.py; see test_prepare_published.py for all scripts."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.preparation_trees import (
    STUFF,
    pixels,
    save_mat,
    save_photo,
    stuff_labels,
    stuff_tree,
)
from tests.helpers.scripts import load_script

pytest.importorskip("h5py", reason="h5py is not installed")
script = load_script("datasets/prepare_coco_stuff_10k_sem_seg.py")


def test_classes_count_from_0_and_unlabelled_is_255(tmp_path: Path) -> None:
    stuff_tree(tmp_path)
    script.prepare(tmp_path)
    source = stuff_labels()
    name = "train/COCO_train2014_000000000110"
    found = pixels(tmp_path / STUFF / "annotations_detectron2" / f"{name}.png")
    assert found.dtype == np.uint8
    assert found.shape == source.shape, "MATLAB arrays must be transposed"
    for y, x in np.ndindex(*source.shape):
        assert found[y, x] == (255 if source[y, x] == 1 else source[y, x] - 2)
    assert {*np.unique(found).tolist()} == {0, 94, 170, 255}


def test_images_are_copied_to_the_split_that_lists_them(tmp_path: Path) -> None:
    stuff_tree(tmp_path)
    script.prepare(tmp_path)
    folder = tmp_path / STUFF / "images_detectron2"
    found = {split: sorted(p.stem[-3:] for p in (folder / split).iterdir()) for split in SPLITS}
    assert found == SPLITS
    name = "COCO_train2014_000000000349.jpg"
    source = tmp_path / STUFF / "images" / name
    assert (folder / "test" / name).read_bytes() == source.read_bytes()


SPLITS = {"train": ["077", "110"], "test": ["349"]}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
def test_integers_of_any_type_are_accepted(tmp_path: Path, dtype: type) -> None:
    save_mat(tmp_path / "a.mat", S=stuff_labels().astype(dtype))
    np.testing.assert_array_equal(script.read_mat(tmp_path / "a.mat"), stuff_labels())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"S": np.zeros((40, 60), np.uint8)}, r"\[0\].*v1\.0: classes 2 to 172, 1 for"),
        ({"S": np.full((40, 60), 173, np.uint8)}, r"\[173\]"),
        ({"S": np.full((40, 60), 2.5)}, r"\[2\.5\]"),
        ({"S": np.full((2, 40, 60), 2, np.uint8)}, r"shape \(2, 40, 60\)"),
        ({"S": np.full((40, 61), 2, np.uint8)}, "61×40 .* 60×40"),
        ({"captions": np.zeros((1, 1))}, "is not an HDF5 file with an array `S`"),
    ],
)
def test_a_mat_file_in_another_format_is_an_error_that_names_it(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    image = save_photo(tmp_path / "a.jpg")
    save_mat(tmp_path / "a.mat", **arrays)
    with pytest.raises(ValueError, match=message) as error:
        script.convert(image, tmp_path / "a.mat", tmp_path / "b.jpg", tmp_path / "b.png")
    assert str(tmp_path / "a.mat") in str(error.value)


def test_without_h5py_the_error_explains_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stuff_tree(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    importlib.invalidate_caches()
    assert script.main(["--root", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("pip install h5py")


def test_an_empty_list_and_a_name_without_image_are_errors(tmp_path: Path) -> None:
    stuff_tree(tmp_path)
    path = tmp_path / STUFF / "imageLists/train.txt"
    path.write_text("COCO_train2014_000000000077\nnobody\n")
    with pytest.raises(FileNotFoundError, match=r"nobody\.jpg is missing \(as are 1 more\)"):
        script.prepare(tmp_path)
    path.write_text("\n")
    with pytest.raises(ValueError, match=r"train\.txt is empty"):
        script.prepare(tmp_path)
