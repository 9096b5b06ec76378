"""datasets/prepare_ade20k_sem_seg.py; test_prepare_published.py tests all such scripts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.preparation_trees import ADE, ade_semantic, ade_tree, pixels, save
from tests.helpers.scripts import load_script

script = load_script("datasets/prepare_ade20k_sem_seg.py")


def test_classes_count_from_0_and_unlabelled_is_255(tmp_path: Path) -> None:
    every = np.arange(151, dtype=np.uint8).reshape(1, -1)
    script.convert(save(tmp_path / "in.png", every), tmp_path / "out.png")
    assert pixels(tmp_path / "out.png").tolist() == [[255, *range(150)]]
    assert pixels(tmp_path / "out.png").dtype == np.uint8


def test_both_splits_are_written_pixel_by_pixel(tmp_path: Path) -> None:
    ade_tree(tmp_path)
    script.prepare(tmp_path)
    source = ade_semantic()
    for name in ("training/ADE_train_00000002", "validation/ADE_val_00000001"):
        found = pixels(tmp_path / ADE / "annotations_detectron2" / f"{name}.png")
        for y, x in np.ndindex(*source.shape):
            assert found[y, x] == (255 if source[y, x] == 0 else source[y, x] - 1)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.full((4, 4), 151, np.uint8), r"\[151\].*1 to 150.*0 for unlabelled"),
        (np.zeros((4, 4, 3), np.uint8), "single-channel"),
        (np.zeros((4, 4), np.uint16), "8-bit"),
    ],
)
def test_a_label_map_in_another_format_is_an_error_that_names_it(
    tmp_path: Path, labels: np.ndarray, message: str
) -> None:
    ade_tree(tmp_path)
    path = save(tmp_path / ADE / "annotations/validation/ADE_val_00000001.png", labels)
    with pytest.raises(ValueError, match=message) as error:
        script.prepare(tmp_path)
    assert str(path) in str(error.value)


def test_an_image_without_label_map_is_an_error(tmp_path: Path) -> None:
    ade_tree(tmp_path)
    (tmp_path / ADE / "annotations/training/ADE_train_00000002.png").unlink()
    with pytest.raises(FileNotFoundError, match="no partner 'ADE_train_00000002"):
        script.prepare(tmp_path)
