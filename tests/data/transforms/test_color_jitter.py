"""torchvision's colour jitter, compared with the formulas of its four functions."""

import colorsys
import random

import numpy as np
import pytest

from mask_former.data.transforms.color_jitter import ColorAugTorchvision
from tests.helpers.noise_images import noise

# The coins: brightness; contrast first; then contrast, saturation and hue, or saturation and hue
# and then contrast.
ONLY = {
    "brightness": [1, 0, 0, 0, 0],
    "contrast": [0, 1, 1, 0, 0],
    "saturation": [0, 0, 1, 0, 0],
    "hue": [0, 0, 0, 1, 0],
}


def grey(image):
    return np.floor(image.astype(float) @ [0.2989, 0.587, 0.114])[..., None]


def turned(image, turn):
    """Add a fraction of a circle to the hue of each pixel."""
    hsv = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3) / 255]
    rgb = [colorsys.hsv_to_rgb((h + turn) % 1, s, v) for h, s, v in hsv]
    return 255 * np.array(rgb).reshape(image.shape)


EXPECTED = {  # by a number in -1 … 1
    "brightness": lambda image, u: image * (1 + 32 / 255 * u),
    "contrast": lambda image, u: (1 + u / 2) * image - u / 2 * grey(image).mean(),
    "saturation": lambda image, u: (1 + u / 2) * image - u / 2 * grey(image),
    "hue": lambda image, u: turned(image, 18 / 360 * u),
}


def draw(monkeypatch, coins, u=0.0, img_format="RGB"):
    """Return the transform for given results of the coins, and a number u in -1 … 1."""
    left = iter(coins)
    monkeypatch.setattr(random, "randrange", lambda stop: next(left))
    monkeypatch.setattr(random, "uniform", lambda a, b: (a + b) / 2 + u * (b - a) / 2)
    return ColorAugTorchvision(img_format).get_transform(None)


@pytest.mark.parametrize("u", [-1.0, 0.6])
@pytest.mark.parametrize("step", ONLY)
def test_each_step_has_torchvisions_formula_and_the_published_range(step, u, monkeypatch):
    image = noise(6, 8)
    found = draw(monkeypatch, ONLY[step], u).apply_image(image)
    expected = np.clip(EXPECTED[step](image, u), 0, 255)
    assert found.dtype == np.uint8 and found.flags.c_contiguous
    assert np.abs(found - expected).max() < 2  # torchvision rounds down
    assert (found != image).any()


def test_bgr_images_are_jittered_as_rgb_images(monkeypatch):
    image = noise(6, 8)
    for coins in ONLY.values():
        rgb = draw(monkeypatch, coins, 0.6, "RGB").apply_image(image)
        bgr = draw(monkeypatch, coins, 0.6, "BGR").apply_image(image[..., ::-1])
        assert (bgr == rgb[..., ::-1]).all()


def test_the_contrast_changes_first_or_last(monkeypatch):
    steps = {}
    for first in (0, 1):
        transform = draw(monkeypatch, [1, first, 1, 1, 1])
        steps[first] = [step.func.__name__ for step in transform.op.keywords["steps"]]
    rest = ["adjust_saturation", "adjust_hue"]
    assert steps[1] == ["adjust_brightness", "adjust_contrast", *rest]
    assert steps[0] == ["adjust_brightness", *rest, "adjust_contrast"]


def test_a_transform_is_deterministic():
    image = noise(6, 8)
    random.seed(3)
    transform = ColorAugTorchvision("RGB").get_transform(image)
    assert (transform.apply_image(image) == transform.apply_image(image)).all()
