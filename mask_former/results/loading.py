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
    """Read a result that :func:`~mask_former.results.npz.save_npz` wrote.

    Args:
        path: The file.
        image: H×W×3, RGB; the file does not hold it. Default: a black image.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if the file is damaged or not a result, or if the image has another size.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: expected a file that Result.save(….npz) wrote."
        )
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        height, width = arrays["size"].tolist()
        if image is None:
            image = np.zeros((height, width, 3), np.uint8)
        return _result(arrays, image, width)
    except (KeyError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path} is not a results file, or the image has another size ({error}): expected a "
            "file that Result.save(….npz) wrote."
        ) from error


def _result(arrays: Arrays, image: NDArray[np.uint8], width: int) -> Result:
    classes = Classes.from_data(json.loads(str(arrays["classes"])))
    semantic = panoptic = instances = None
    semantic_scores = arrays.get("semantic_scores")
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
    return Result(image, classes, semantic, semantic_scores, panoptic, instances, file_name)
