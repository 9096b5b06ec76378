"""Small custom datasets: images with label maps, or with a COCO JSON (instance or panoptic)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mask_former.data.formats.coco_panoptic import segments_info, write_ids

SIZE = (48, 64)  # height and width in pixels


def write_image(path: Path, size: tuple[int, ...] = SIZE, seed: int = 0) -> None:
    """Write an RGB image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_labels(path: Path, labels: np.ndarray, dtype: Any = np.uint8) -> None:
    """Write a label map, H×W, with 8 or 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(dtype)).save(path)


def halves(value_left: int, value_right: int) -> np.ndarray:
    """Return a label map of one value on the left and another one on the right."""
    labels = np.full(SIZE, value_left)
    labels[:, SIZE[1] // 2 :] = value_right
    return labels


def write_semantic_folder(folder: Path, values: tuple[int, int], count: int = 2) -> None:
    """Write images to `i` and label maps to `l`; the halves of each map have these two values."""
    for number in range(count):
        write_image(folder / "i" / f"{number}.jpg", seed=number)
        write_labels(folder / "l" / f"{number}.png", halves(*values))


def write_instances(folder: Path) -> tuple[Path, Path]:
    """Write one image with a cat and a dog; return the folder of images and the JSON."""
    write_image(folder / "i" / "a.png")
    height, width = SIZE
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    boxes = {1: (4, 4, 20, 20), 3: (30, 10, 20, 30)}
    annotations = [
        {
            "id": number,
            "image_id": 1,
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": 0,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
        }
        for number, (category, (x, y, w, h)) in enumerate(boxes.items(), start=1)
    ]
    categories = [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}]
    content = {"images": [image], "annotations": annotations, "categories": categories}
    (folder / "x.json").write_text(json.dumps(content))
    return folder / "i", folder / "x.json"


def write_panoptic(folder: Path) -> tuple[Path, Path, Path]:
    """Write one image, half ground and half dog; return the folder of images, JSON and PNGs."""
    write_image(folder / "i" / "a.png")
    ids = halves(7, 300).astype(np.int32)
    (folder / "p").mkdir()
    write_ids(folder / "p" / "a.png", ids)
    height, width = SIZE
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    segments = segments_info(ids, {7: 2, 300: 4})
    annotation = {"image_id": 1, "file_name": "a.png", "segments_info": segments}
    categories = [
        {"id": 2, "name": "ground", "isthing": 0},
        {"id": 4, "name": "dog", "isthing": 1},
    ]
    content = {"images": [image], "annotations": [annotation], "categories": categories}
    (folder / "x.json").write_text(json.dumps(content))
    return folder / "i", folder / "x.json", folder / "p"
