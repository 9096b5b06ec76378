"""Read the instance annotations of ADE20K-150's download."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .downloads import read_image

__all__ = ["read_instances"]


def read_instances(path: Path, known: Collection[int]) -> NDArray[np.uint8]:
    """Read an instance annotation of ADE20K-150.

    Args:
        path: the file in annotations_instance.
        known: the categories of things.

    Returns:
        H×W×2: the category (1 to 100) and the number of the instance, which is 0 outside instances.

    Raises:
        ValueError: if the file is damaged, is not an RGB image, or has an unknown category.
    """
    pixels = np.asarray(read_image(path))
    if pixels.ndim != 3 or pixels.dtype != np.uint8:
        raise ValueError(
            f"{path}: found an array of {pixels.dtype} {pixels.shape}, expected an 8-bit PNG with "
            "the category in its first channel and the instance in its second."
        )
    pixels = pixels[..., :2]
    categories = np.unique(pixels[..., 0][pixels[..., 1] > 0]).tolist()
    wrong = sorted(set(categories) - set(known))
    if wrong:
        raise ValueError(
            f"{path}: found instances of the categories {wrong}, expected 1 to {max(known)}."
        )
    return pixels
