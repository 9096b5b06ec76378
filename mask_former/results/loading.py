"""Reader of results that were saved as .npz."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_former.data.datasets.classes import Classes

from .arrays import InstanceResult, PanopticResult
from .image_result import Result
from .npz import Arrays

__all__ = ["load_npz"]


def load_npz(path: str | Path, image: NDArray[np.uint8] | None = None) -> Result:
    """Read what :func:`save_npz` wrote.

    Args:
        path: of the file.
        image: H×W×3, RGB: the picture, which is not in the file. Without it, it is black.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is broken, or none of its kind, or the picture is of another size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of results {path}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        height, width = arrays["size"].tolist()
        if image is None:
            image = np.zeros((height, width, 3), np.uint8)
        return _result(arrays, image, width)
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is no file of results, or the picture is of another size ({error}): expected "
            "what Result.save(….npz) writes."
        ) from error


def _result(arrays: Arrays, image: NDArray[np.uint8], width: int) -> Result:
    classes = Classes.from_data(json.loads(str(arrays["classes"])))
    semantic = panoptic = instances = None
    shares = arrays.get("semantic_scores")
    if "semantic" in arrays:
        semantic = arrays["semantic"].astype(np.int32)
    if "panoptic_ids" in arrays:
        segments = json.loads(str(arrays["panoptic_segments"]))
        panoptic = PanopticResult(arrays["panoptic_ids"].astype(np.int32), segments)
    if "instance_masks" in arrays:
        masks = np.unpackbits(arrays["instance_masks"], axis=-1, count=width).view(bool)
        class_ids = arrays["instance_class_ids"]
        names = [classes.names[i] for i in class_ids]
        boxes, scores = arrays["instance_boxes"], arrays["instance_scores"]
        instances = InstanceResult(masks, boxes, scores, class_ids, names)
    file_name = str(arrays["file_name"]) if "file_name" in arrays else None
    return Result(image, classes, semantic, shares, panoptic, instances, file_name)
