"""Source files are checked while they are read."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mask_former.data.preparation.downloads import (
    check_size,
    copy_file,
    read_image,
    read_labels,
    require,
)
from tests.helpers.damage import flip_a_bit


def test_a_copy_has_the_same_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"\x00\xff")
    copy_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"\x00\xff"


def test_the_error_for_missing_files_names_the_first_and_counts_the_others(tmp_path: Path) -> None:
    require([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"x is missing: "):
        require([tmp_path, tmp_path / "x"])
    with pytest.raises(FileNotFoundError, match=r"x is missing \(as are 2 more\)"):
        require([tmp_path / "x", tmp_path, tmp_path / "y", tmp_path / "z"])


def encoded(suffix: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, format=suffix)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["PNG", "JPEG"])
def test_a_truncated_file_is_an_error_that_names_it(tmp_path: Path, suffix: str) -> None:
    content = encoded(suffix)
    path = tmp_path / "a.img"
    path.write_bytes(content)
    assert read_image(path).size == (16, 16)
    for length in range(0, len(content) * 9 // 10, 7):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cannot be read as an image") as error:
            read_image(path)
        assert str(path) in str(error.value)


def test_a_png_with_a_flipped_bit_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded("PNG"))
    flip_a_bit(path)
    with pytest.raises(ValueError, match=r"a\.png cannot be read"):
        read_image(path)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_labels_are_the_indices_of_a_grey_or_palette_image(tmp_path: Path, mode: str) -> None:
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    image = Image.fromarray(labels)
    if mode == "P":
        image.putpalette(list(range(255, -1, -1)) * 3)
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_labels(tmp_path / "a.png", 11, ""), labels)
    with pytest.raises(ValueError, match=r"a\.png holds the values \[10, 11\]: expected nine"):
        read_labels(tmp_path / "a.png", 9, "nine")


def test_the_error_for_different_sizes_reports_width_before_height(tmp_path: Path) -> None:
    image = Image.new("L", (3, 2))
    check_size(tmp_path / "l", np.zeros((2, 3)), tmp_path / "i", image)
    check_size(tmp_path / "l", np.zeros((2, 3, 3)), tmp_path / "i", image)
    with pytest.raises(ValueError, match=r"l is 2×3 pixels, but its image .*i is 3×2"):
        check_size(tmp_path / "l", np.zeros((3, 2)), tmp_path / "i", image)
