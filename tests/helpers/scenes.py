"""Drawn scenes as a dataset in COCO's formats, with predictions close to their ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from mask_former.data.datasets.catalog import Category, read_table
from mask_former.data.datasets.classes import Classes
from mask_former.data.formats.coco_panoptic import segments_info, write_ids, write_json
from mask_former.data.shapes.scene import scene

TABLE = read_table("shapes").categories
CLASSES = Classes(
    [c.name for c in TABLE],
    [(c.color[0], c.color[1], c.color[2]) for c in TABLE if c.color is not None],
    [c.isthing for c in TABLE],
)
CATEGORY_IDS = {index: 5 * (len(TABLE) - index) for index in range(len(TABLE))}
"""Contiguous id -> category id; category ids are in reverse order and have gaps."""
CATEGORIES = [Category(c.name, CATEGORY_IDS[i], c.color, c.isthing) for i, c in enumerate(TABLE)]


@dataclass
class Scene:
    """An image and plausible outputs of a model for it."""

    image_id: int
    image: np.ndarray
    outputs: dict[str, Any]
    """In the format of :class:`MaskFormer`."""

    @property
    def name(self) -> str:
        """The file name of the image, without suffix."""
        return f"{self.image_id:06d}"


def write_dataset(folder: Path, count: int = 6, seed: int = 0) -> list[Scene]:
    """Draw scenes; write their ground truth as ``panoptic.json`` and ``panoptic/``."""
    (folder / "panoptic").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    scenes, images, annotations = [], [], []
    for number in range(count):
        image, ids, names = scene((seed, number))
        classes = {i: CLASSES.names.index(name) for i, name in names.items()}
        found = Scene(101 + 7 * number, image, predict(ids, classes, rng))
        infos = segments_info(ids, {i: CATEGORY_IDS[c] for i, c in classes.items()})
        write_ids(folder / "panoptic" / f"{found.name}.png", ids)
        size = {"height": ids.shape[0], "width": ids.shape[1]}
        entry = {"image_id": found.image_id, "file_name": f"{found.name}.png"}
        annotations.append({**entry, "segments_info": infos})
        images.append({"id": found.image_id, "file_name": f"{found.name}.jpg", **size})
        scenes.append(found)
    write_json(folder / "panoptic.json", CATEGORIES, images, annotations)
    return scenes


def predict(ids: np.ndarray, classes: dict[int, int], rng: np.random.Generator) -> dict[str, Any]:
    """Return the ground truth shifted by up to 3 pixels, with missing and misclassified segments.

    Args:
        ids: segment ids, H×W.
        classes: segment id -> contiguous class id.
    """
    moved = np.roll(ids, rng.integers(-3, 4, 2), (0, 1))
    segments, masks = [], []
    for segment_id, class_id in classes.items():
        mask = moved == segment_id
        if rng.random() < 0.1 or not mask.any():
            moved[mask] = 0
            continue
        wrong = rng.random() < 0.2
        class_id = int(rng.integers(len(TABLE))) if wrong else class_id
        score = float(rng.uniform(0.3, 1))
        thing = CLASSES.is_thing[class_id]
        segments.append(
            {"id": segment_id, "isthing": thing, "category_id": class_id, "score": score}
        )
        masks.append(mask)
    semantic = torch.rand(len(TABLE), *ids.shape, generator=torch.Generator().manual_seed(1))
    return {
        "panoptic_seg": (torch.from_numpy(moved.astype(np.int32)), segments),
        "instances": instances_of(segments, masks, ids.shape),
        "sem_seg": semantic,
    }


def instances_of(segments: list[dict[str, Any]], masks: list[np.ndarray], size: Any) -> Instances:
    """Return the things among the segments as instances, with boxes around their masks."""
    things = [i for i, segment in enumerate(segments) if segment["isthing"]]
    edges = []
    for i in things:
        y, x = np.nonzero(masks[i])
        edges.append([x.min(), y.min(), x.max() + 1, y.max() + 1])
    chosen = np.array([masks[i] for i in things], bool).reshape(-1, *size)
    return Instances(
        tuple(size),
        pred_masks=torch.from_numpy(chosen),
        pred_boxes=Boxes(torch.tensor(np.array(edges, np.float32).reshape(-1, 4))),
        scores=torch.tensor([segments[i]["score"] for i in things]),
        pred_classes=torch.tensor([segments[i]["category_id"] for i in things], dtype=torch.int64),
    )
