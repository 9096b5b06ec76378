"""Check that the files of a download exist and have the expected form."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.utils.atomic_files import replace_file
from mask_former.utils.bounded_files import read_bytes

from ..formats.pixels import image_errors, open_image


def require(paths: Iterable[Path]) -> None:
    """Raise a FileNotFoundError that names the first missing file and counts the others."""
    missing = [path for path in paths if not path.exists()]
    if missing:
        more = f" (as are {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise FileNotFoundError(f"{missing[0]} is missing{more}: the download is incomplete.")


def read_image(path: Path) -> Image.Image:
    """Read a complete image file, as stored (without EXIF rotation).

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the file is damaged or not an image.
    """
    require([path])
    with image_errors(str(path), damaged="Copy it again."):
        image = open_image(read_bytes(path))
        image.load()
    return image


def read_labels(path: Path, largest: int, meaning: str) -> NDArray[np.uint8]:
    """Read an H×W label map of a single-channel 8-bit file.

    Args:
        path: the file.
        largest: the largest allowed value.
        meaning: the meaning of the values 0 … ``largest``, for the error message.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, has another form, or has other values.
    """
    labels = np.asarray(read_image(path))
    if labels.ndim != 2 or labels.dtype != np.uint8:
        raise ValueError(
            f"{path}: found an array of {labels.dtype} {labels.shape}, expected a single-channel "
            "8-bit PNG whose pixels are class indices (not colours)."
        )
    wrong = np.unique(labels[labels > largest]).tolist()
    if wrong:
        raise ValueError(f"{path} holds the values {wrong}: expected {meaning}.")
    return labels


def check_size(
    labels_path: Path, labels: NDArray[Any], image_path: Path, image: Image.Image
) -> None:
    """Raise ValueError unless an annotation (H×W or H×W×C) is as large as its image."""
    height, width = labels.shape[:2]
    if (width, height) != image.size:
        raise ValueError(
            f"{labels_path} is {width}×{height} pixels, but its image {image_path} is "
            f"{image.width}×{image.height}: expected the same size."
        )


def copy_file(source: Path, target: Path) -> None:
    """Copy a file's content, atomically."""
    replace_file(target, lambda part: shutil.copyfile(source, part))
