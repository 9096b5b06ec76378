"""Write datasets in COCO panoptic format (Kirillov et al., Panoptic Segmentation, 2019)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from mask_former.utils.atomic_files import replace_file, replace_text

from ..datasets.table import Category
from ..targets import index_segments


def segments_info(ids: NDArray[np.int32], category_ids: Mapping[int, int]) -> list[dict[str, Any]]:
    """Build COCO's ``segments_info`` of a map of segment ids.

    Args:
        ids: H×W segment ids; 0 is void.
        category_ids: segment id -> category id of the dataset, for exactly the ids in the map.

    Returns:
        Dicts of ``id``, ``category_id``, ``area`` (pixels), ``bbox`` (x, y, width, height in
        pixels) and ``iscrowd`` (0), by ascending id.
    """
    segment_ids = sorted(category_ids)
    index_map, present = index_segments(ids, segment_ids)
    found = [int(i) for i in present if i != 0]
    assert found == segment_ids, (found, segment_ids)
    areas = np.bincount(index_map.ravel(), minlength=len(found) + 1)[1:]
    infos = []
    for segment_id, area, (rows, columns) in zip(
        found, areas.tolist(), ndimage.find_objects(index_map), strict=True
    ):
        left, top = columns.start, rows.start
        infos.append(
            {
                "id": segment_id,
                "category_id": category_ids[segment_id],
                "area": area,
                "bbox": [left, top, columns.stop - left, rows.stop - top],
                "iscrowd": 0,
            }
        )
    return infos


def category_entries(categories: Iterable[Category]) -> list[dict[str, Any]]:
    """Build the ``categories`` of a COCO JSON."""
    return [
        {"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": c.color}
        for c in categories
    ]


def write_ids(path: Path, ids: NDArray[np.int32]) -> None:
    """Write H×W segment ids as an RGB PNG: id = R + 256·G + 256²·B."""
    rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)
    write_image(path, rgb)


def write_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image, H×W or H×W×3 (RGB), as a PNG, atomically."""
    png = Image.fromarray(image)
    replace_file(path, lambda part: png.save(part, format="PNG", compress_level=3))


def write_json(
    path: Path,
    categories: Sequence[Category],
    images: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
) -> None:
    """Write the JSON file of a split, atomically.

    Args:
        path: the file.
        categories: the classes.
        images: dicts of ``id``, ``file_name``, ``height``, ``width``.
        annotations: dicts of ``image_id``, ``file_name`` (of the PNG) and ``segments_info``.
    """
    content = {
        "images": images,
        "annotations": annotations,
        "categories": category_entries(categories),
    }
    replace_text(path, json.dumps(content))
