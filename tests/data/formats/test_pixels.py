"""Pixels are scaled by the bit depth of the file, whatever type Pillow loads it as."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image

from mask_former.data.formats.pixels import image_formats, read_pixels
from mask_former.data.formats.readers import read_label_map
from mask_former.predictor.images import load_image

DARK = np.arange(24, dtype=np.uint8).reshape(4, 6)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's sample formats
TYPES = {
    (16, UNSIGNED): "u2",
    (16, SIGNED): "i2",
    (32, UNSIGNED): "u4",
    (32, SIGNED): "i4",
    (32, FLOAT): "f4",
}


def packed_12(values):
    """Pack two 12-bit values into three bytes."""
    a, b = values.astype(np.uint16).reshape(-1, 2).T
    return np.stack([a >> 4, (a & 15) << 4 | b >> 8, b & 255], axis=1).astype(np.uint8).tobytes()


def grey_tiff(values, bits, kind=UNSIGNED, order="<"):
    """Build a TIFF byte by byte, because Pillow cannot write every kind that it reads."""
    height, width = values.shape
    if bits == 12:
        data = packed_12(values)
    else:
        data = values.astype(order + TYPES[bits, kind]).tobytes()
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8, 277: 1, 278: height}
    tags |= {279: len(data), 339: kind}
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8 + len(data))
    # Type 4: one 32-bit number.
    entries = [struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items()]
    return head + data + struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)


def pgm(values):
    return b"P5 %d %d 65535\n" % values.shape[::-1] + values.astype(">u2").tobytes()


def pfm(values):
    """Build a grey PFM file, whose rows go from bottom to top."""
    return b"Pf\n%d %d\n-1.0\n" % values.shape[::-1] + values[::-1].astype("<f4").tobytes()


SCALED = {
    "12 bit": grey_tiff(DARK * 16.0, 12),
    "16 bit": grey_tiff(DARK * 256.0 + 7, 16),
    "16 bit, the other byte order": grey_tiff(DARK * 256.0 + 7, 16, order=">"),
    "16 bit with a sign": grey_tiff(DARK * 256.0 + 7, 16, SIGNED),
    "16 bit PGM": pgm(DARK * 256.0 + 7),
}
TOO_DEEP = {
    "without a sign": grey_tiff(DARK, 32),
    "with a sign": grey_tiff(DARK, 32, SIGNED),
    "the other byte order": grey_tiff(DARK, 32, SIGNED, ">"),
    "like 16 bit": grey_tiff(DARK * 2570.0, 32),
    "another format": pfm(DARK),
    "fractions": grey_tiff(DARK, 32, FLOAT),
}


@pytest.mark.parametrize("name", SCALED)
def test_images_of_9_to_16_bits_are_scaled_by_the_depth_of_the_file(name, tmp_path):
    pixels = read_pixels(SCALED[name], "RGB")
    assert pixels.dtype == np.uint8 and (pixels == DARK[..., None]).all()
    (tmp_path / "x").write_bytes(SCALED[name])
    with Image.open(tmp_path / "x") as image:
        assert (load_image(image).pixels == pixels).all()


@pytest.mark.parametrize("name", TOO_DEEP)
def test_a_32_bit_image_is_refused_because_its_white_value_is_unknown(name, tmp_path):
    expected = r"holds \w+32 values from 0.* to .*, 32 bits each; expected 8 or 16 bits per channel"
    with pytest.raises(
        ValueError, match=rf"{expected}, integers .*Save it with 8 bits, black as 0"
    ):
        read_pixels(TOO_DEEP[name], "BGR")
    path = tmp_path / "deep.tif"
    path.write_bytes(TOO_DEEP[name])
    with Image.open(path) as image:
        for source in (path, image):
            with pytest.raises(ValueError, match=rf"deep\.tif.*{expected}"):
                load_image(source)


def test_negative_values_are_refused():
    content = grey_tiff(DARK * 256.0 - 300, 16, SIGNED)
    with pytest.raises(ValueError, match=r"from -300 to 5588, 16 bits each; .*integers from 0"):
        read_pixels(content, "RGB")


@pytest.mark.parametrize("name", ["without a sign", "with a sign", "the other byte order"])
def test_label_maps_may_have_32_bits(name, tmp_path):
    assert (read_pixels(TOO_DEEP[name]) == DARK).all()
    (tmp_path / "labels.tif").write_bytes(TOO_DEEP[name])
    labels = read_label_map(str(tmp_path / "labels.tif"))
    assert labels.dtype == np.uint16 and (labels == DARK).all()


def test_only_the_formats_of_photos_and_label_maps_are_opened(tmp_path):
    assert {"JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF", "PPM"} <= set(image_formats())
    Image.fromarray(DARK).save(tmp_path / "x.png", format="PCX")
    with pytest.raises(ValueError, match=r"x\.png.*not recognise its format"):
        load_image(tmp_path / "x.png")
