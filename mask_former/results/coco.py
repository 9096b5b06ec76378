"""Results in COCO's panoptic and instance formats, as its evaluators read them.

Category ids in the files are the dataset's where ``category_ids`` gives them; otherwise a class's
id is its contiguous one plus 1. The formats: https://cocodataset.org/#format-results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from mask_former.data.datasets.classes import Classes
from mask_former.data.formats.coco_panoptic import segments_info, write_ids

from .arrays import InstanceResult, PanopticResult

__all__ = ["categories", "instance_records", "panoptic_record", "resolve_category_ids"]

CategoryIds = Sequence[int | None]
"""The dataset's id of each of the K classes; None where it has none."""


def resolve_category_ids(classes: Classes, category_ids: Mapping[int, int] | None) -> CategoryIds:
    """The category id of each class.

    Args:
        classes: of the K classes.
        category_ids: contiguous id -> category id of the dataset; None: the contiguous id plus 1.

    Raises:
        ValueError: two classes have the same id.
    """
    count = len(classes.names)
    if category_ids is None:
        return range(1, count + 1)
    ids = [category_ids.get(index) for index in range(count)]
    there = [i for i in ids if i is not None]
    if len(set(there)) < len(there):
        raise ValueError(
            f"category_ids gives two classes the same id: {dict(category_ids)}; expected the "
            "category id of the dataset by contiguous id, each once."
        )
    return ids


def categories(classes: Classes, ids: CategoryIds) -> list[dict[str, Any]]:
    """COCO's ``categories``: dicts of id, name, isthing and color, of the classes with an id."""
    return [
        {"id": i, "name": data["name"], "isthing": int(data["isthing"]), "color": data["color"]}
        for i, data in zip(ids, classes.to_data(), strict=True)
        if i is not None
    ]


def panoptic_record(
    result: PanopticResult, path: Path, image_id: int | str, ids: CategoryIds
) -> dict[str, Any]:
    """Write the PNG of segment ids; returns the picture's entry in ``annotations``.

    Args:
        result: of the picture.
        path: of the PNG, in the folder of all.
        image_id: of the picture.
        ids: the category id of each class.

    Raises:
        ValueError: ids and segments do not fit each other, or a class has no category id.
    """
    described = {s["id"]: _category(s["category_id"], ids, path) for s in result.segments}
    found = set(np.unique(result.ids).tolist()) - {0}
    if found != set(described) or len(described) != len(result.segments):
        raise ValueError(
            f"{path}: the id map has the segments {sorted(found)}, segments describes "
            f"{[s['id'] for s in result.segments]}; they must be the same, each of them once."
        )
    infos = segments_info(result.ids, described)
    scores = {segment["id"]: segment.get("score") for segment in result.segments}
    for info in infos:
        if scores[info["id"]] is not None:  # COCO asks for none, but leaves it alone
            info["score"] = scores[info["id"]]
    write_ids(path, result.ids)
    return {"image_id": image_id, "file_name": path.name, "segments_info": infos}


def instance_records(
    result: InstanceResult, image_id: int | str, ids: CategoryIds, where: str | Path
) -> list[dict[str, Any]]:
    """A picture's instances as COCO has them in the list of all results.

    Args:
        result: of the picture.
        image_id: of the picture.
        ids: the category id of each class.
        where: the picture or file, for the message.

    Returns:
        dicts of ``image_id``, ``category_id``, ``bbox`` (left, top, width, height in pixels),
        ``score`` and ``segmentation`` (compressed RLE), by falling score.

    Raises:
        ValueError: a class has no category id.
    """
    records = []
    for mask, box, score, class_id in zip(
        result.masks, result.boxes, result.scores, result.class_ids, strict=True
    ):
        left, top, right, bottom = box.tolist()
        rle = coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
        records.append(
            {
                "image_id": image_id,
                "category_id": _category(int(class_id), ids, where),
                "bbox": [left, top, right - left, bottom - top],
                "score": float(score),
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode("ascii")},
            }
        )
    return records


def _category(class_id: int, ids: CategoryIds, where: str | Path) -> int:
    found = ids[class_id] if 0 <= class_id < len(ids) else None
    if found is None:
        raise ValueError(
            f"{where}: the class {class_id} has no category id; category_ids gives them to "
            f"{[index for index, i in enumerate(ids) if i is not None]}. Was the model trained on "
            "other classes than the dataset's?"
        )
    return found
