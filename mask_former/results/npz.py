"""Save all arrays of a result in one compressed file; :mod:`.loading` reads it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.utils.atomic_files import replace_file

from .arrays import InstanceResult, ResultArrays

__all__ = ["Arrays", "save_npz"]

Arrays = dict[str, NDArray[Any]]


def save_npz(result: ResultArrays, path: Path, kinds: Collection[str] | None = None) -> None:
    """Write a result without its image, atomically.

    The file holds these arrays; those of missing results are left out:

    =================== ==================================================================
    size                height and width of the image
    classes             JSON text, a list of dicts of name, color and isthing
    file_name           file of the image
    semantic            H×W class ids, -1 where there is no class
    semantic_scores     H×W float32, in [0, 1]
    panoptic_ids        H×W segment ids, 0 where there is no segment
    panoptic_segments   JSON text, a list of dicts of id, isthing, category_id and score
    instance_masks      N×H×ceil(W/8) uint8, eight pixels per byte (``numpy.packbits``)
    instance_boxes      N×4 float32, XYXY in pixels, right and bottom exclusive
    instance_scores     N float32
    instance_class_ids  N class ids
    =================== ==================================================================

    Args:
        result: The result to write.
        path: A file name that ends in .npz.
        kinds: Kinds of results to write. Default: all existing ones.
    """
    chosen = result.kinds if kinds is None else kinds
    arrays: Arrays = {
        "size": np.array(result.image.shape[:2]),
        "classes": np.array(json.dumps(result.classes.to_data())),
    }
    if result.file_name is not None:
        arrays["file_name"] = np.array(result.file_name)
    if result.semantic is not None and "semantic" in chosen:
        arrays["semantic"] = _small(result.semantic)
        if result.semantic_scores is not None:
            arrays["semantic_scores"] = result.semantic_scores
    if result.panoptic is not None and "panoptic" in chosen:
        arrays["panoptic_ids"] = _small(result.panoptic.ids)
        arrays["panoptic_segments"] = np.array(json.dumps(result.panoptic.segments))
    if result.instances is not None and "instance" in chosen:
        arrays |= _instance_arrays(result.instances)
    replace_file(path, lambda part: _write(part, arrays))


def _instance_arrays(instances: InstanceResult) -> Arrays:
    return {
        "instance_masks": np.packbits(instances.masks, axis=-1),
        "instance_boxes": instances.boxes,
        "instance_scores": instances.scores,
        "instance_class_ids": instances.class_ids,
    }


def _small(ids: NDArray[np.int32]) -> NDArray[Any]:
    """Convert ids to 16 bit if they fit."""
    bounds = np.iinfo(np.int16)
    fits = bounds.min <= ids.min(initial=0) and ids.max(initial=0) <= bounds.max
    return ids.astype(np.int16) if fits else ids


def _write(part: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with part.open("wb") as file:  # numpy would append .npz to a path
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
