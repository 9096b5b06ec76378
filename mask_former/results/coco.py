"""Results in COCO's panoptic and instance formats (https://cocodataset.org/#format-results).

Category ids in the files are those of the dataset if ``category_ids`` is given; otherwise they are
the contiguous ids plus 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mask_former.data.datasets.classes import Classes
from mask_former.data.datasets.table import Category
from mask_former.data.formats.coco_panoptic import category_entries, segments_info, write_ids
from mask_former.data.formats.rle import encode_mask

from .arrays import InstanceResult, PanopticResult

__all__ = ["categories", "instance_records", "panoptic_record", "resolve_category_ids"]

CategoryIds = Sequence[int | None]
"""Category id of each of the K classes; None for a class without one."""


def resolve_category_ids(classes: Classes, category_ids: Mapping[int, int] | None) -> CategoryIds:
    """Return the category id of each class.

    Args:
        classes: The K classes.
        category_ids: The dataset's category ids by contiguous id. Default: the contiguous id
            plus 1.

    Raises:
        ValueError: if two classes have the same category id.
    """
    count = len(classes.names)
    if category_ids is None:
        return range(1, count + 1)
    ids = [category_ids.get(index) for index in range(count)]
    given = [i for i in ids if i is not None]
    if len(set(given)) < len(given):
        raise ValueError(
            f"category_ids gives two classes the same id: {dict(category_ids)}; expected a "
            "different category id of the dataset for each contiguous id."
        )
    return ids


def categories(classes: Classes, ids: CategoryIds) -> list[dict[str, Any]]:
    """Build COCO's ``categories``: id, name, isthing and color of each class with an id."""
    return category_entries(
        Category(data["name"], i, data["color"], data["isthing"])
        for i, data in zip(ids, classes.to_data(), strict=True)
        if i is not None
    )


def panoptic_record(
    result: PanopticResult, path: Path, image_id: int | str, ids: CategoryIds
) -> dict[str, Any]:
    """Write the PNG of segment ids and return the image's entry in ``annotations``.

    Args:
        result: The image's panoptic result.
        path: The PNG to write.
        image_id: The image's id in its dataset.
        ids: Category id of each class.

    Raises:
        ValueError: if the id map and the segments contradict each other, or a class has no
            category id.
    """
    described = {s["id"]: _category(s["category_id"], ids, path) for s in result.segments}
    found = set(np.unique(result.ids).tolist()) - {0}
    if found != set(described) or len(described) != len(result.segments):
        raise ValueError(
            f"{path}: the id map has the ids {sorted(found)}, but the segments have "
            f"{[s['id'] for s in result.segments]}; expected one segment for each id."
        )
    infos = segments_info(result.ids, described)
    scores = {segment["id"]: segment.get("score") for segment in result.segments}
    for info in infos:
        if scores[info["id"]] is not None:  # an optional entry, which COCO's readers ignore
            info["score"] = scores[info["id"]]
    write_ids(path, result.ids)
    return {"image_id": image_id, "file_name": path.name, "segments_info": infos}


def instance_records(
    result: InstanceResult, image_id: int | str, ids: CategoryIds, where: str | Path
) -> list[dict[str, Any]]:
    """Return an image's instances as entries of COCO's list of results.

    Args:
        result: The image's instances.
        image_id: The image's id in its dataset.
        ids: Category id of each class.
        where: The image or file, for the error message.

    Returns:
        Dicts of ``image_id``, ``category_id``, ``bbox`` (left, top, width, height in pixels),
        ``score`` and ``segmentation`` (compressed RLE), by descending score.

    Raises:
        ValueError: if a class has no category id.
    """
    records = []
    for mask, box, score, class_id in zip(
        result.masks, result.boxes, result.scores, result.class_ids, strict=True
    ):
        left, top, right, bottom = box.tolist()
        records.append(
            {
                "image_id": image_id,
                "category_id": _category(int(class_id), ids, where),
                "bbox": [left, top, right - left, bottom - top],
                "score": float(score),
                "segmentation": encode_mask(mask),
            }
        )
    return records


def _category(class_id: int, ids: CategoryIds, where: str | Path) -> int:
    found = ids[class_id] if 0 <= class_id < len(ids) else None
    if found is None:
        raise ValueError(
            f"{where}: class {class_id} has no category id; category_ids has one for the classes "
            f"{[index for index, i in enumerate(ids) if i is not None]}. Was the model trained on "
            "other classes than the dataset's?"
        )
    return found
