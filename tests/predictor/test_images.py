"""Images of every supported type give the same RGB pixels; others a helpful error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.predictor.images import load_image


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)


def test_a_file_a_pil_image_an_array_and_a_tensor_are_the_same_image(pixels, tmp_path):
    file = tmp_path / "x.png"
    Image.fromarray(pixels).save(file)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (file, str(file), Image.open(file), Image.fromarray(pixels), pixels, tensor):
        found = load_image(image).pixels
        assert found.dtype == np.uint8 and np.array_equal(found, pixels)
        assert found.flags.c_contiguous
    assert load_image(file).file_name == str(file) == load_image(Image.open(file)).file_name
    assert load_image(pixels).file_name is None is load_image(Image.fromarray(pixels)).file_name


def test_the_pixels_are_a_copy(pixels):
    found = load_image(pixels).pixels
    expected = found.copy()
    pixels[:] = 0
    assert np.array_equal(found, expected)


def test_grey_images_get_three_equal_channels(pixels):
    grey = pixels[..., 0]
    expected = np.stack([grey] * 3, axis=2)
    for image in (grey, Image.fromarray(grey), torch.from_numpy(grey.copy())):
        assert np.array_equal(load_image(image).pixels, expected)


def test_16_bit_images_are_scaled_to_8_bits(pixels, tmp_path):
    deep = pixels.astype(np.uint16) * 256 + 17
    assert np.array_equal(load_image(deep).pixels, pixels)
    grey = deep[..., 0]
    expected = np.stack([pixels[..., 0]] * 3, axis=2)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    for image in (grey, Image.fromarray(grey), tmp_path / "deep.png"):
        assert np.array_equal(load_image(image).pixels, expected)
    assert np.array_equal(load_image(Image.fromarray(grey.astype(np.int32))).pixels, expected)


def test_exif_orientation_palette_and_alpha_of_a_pil_image_are_resolved(pixels):
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6  # to be rotated by 90 degrees
    assert np.array_equal(load_image(image).pixels, np.rot90(pixels, -1))
    assert np.array_equal(load_image(Image.fromarray(pixels).convert("RGBA")).pixels, pixels)
    palette = Image.fromarray(pixels).quantize(8)
    assert np.array_equal(load_image(palette).pixels, np.array(palette.convert("RGB")))


@pytest.mark.parametrize(
    "image, message",
    [
        (np.full((2, 2, 3), 0.5), r"float64 values from 0\.5 to 0\.5.*0 … 255.*255 \* image"),
        (
            np.full((2, 2, 3), 200.0),
            r"float64 values from 200 to 200; expected uint8: use image\.round",
        ),
        (
            np.full((2, 2, 3), -1.5, np.float32),
            r"float32 .*-1\.5.*Do not normalise the image",
        ),
        (np.full((2, 2, 3), 300), r"int64 values from 300 to 300; expected uint8 in 0 … 255"),
        (np.zeros((2, 2), bool), "bool values .*expected uint8"),
        (np.zeros((3, 5, 7), np.uint8), r"3×5×7; expected H×W×3.*transpose\(1, 2, 0\)"),
        (np.zeros((5, 7, 4), np.uint8), r"5×7×4; .*image\[\.\.\., :3\]"),
        (np.zeros((5, 7, 1), np.uint8), r"5×7×1; .*image\[\.\.\., 0\]"),
        (np.zeros((1, 5, 7, 3), np.uint8), "1×5×7×3; .*give several images as a list"),
        (np.zeros((0, 7, 3), np.uint8), "empty: 0×7×3"),
        (np.array(3, np.uint8), "a single value"),
        (torch.zeros(5, 7, 3, dtype=torch.uint8), r"\(5, 7, 3\); expected 3×H×W: .*permute"),
        (torch.zeros(3, 5, 7), "float32 values from 0 to 0.*255"),
        (Image.fromarray(np.full((2, 2), 0.5, np.float32)), "float32 values"),
        (17, "int '17' is not an image; expected a path"),
        (None, "NoneType 'None' is not an image"),
    ],
)
def test_other_inputs_are_refused_with_what_was_found_and_expected(image, message):
    with pytest.raises(ValueError, match=message):
        load_image(image)


def test_the_error_for_a_missing_or_unreadable_file_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.png: is missing"):
        load_image(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match=r"text\.png: cannot be read as an image: Pillow does not"):
        load_image(tmp_path / "text.png")
