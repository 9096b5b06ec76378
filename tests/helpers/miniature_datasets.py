"""The published datasets in miniature: a few random images each, prepared for training.

Only the files that training and evaluation read are written. `write_all` writes all datasets below
one folder, which a process can use as `$DETECTRON2_DATASETS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from cityscapesscripts.helpers.labels import labels as CITYSCAPES_LABELS
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from numpy.typing import NDArray
from PIL import Image

from mask_former.data.datasets.catalog import Category, read_table
from mask_former.data.formats.coco_panoptic import segments_info, write_ids, write_json

HEIGHT, WIDTH, BLOCK = 64, 96, 16  # pixels
COUNTS = {"train": 4, "val": 3}
Rng = np.random.Generator


def write_all(root: Path, seed: int = 0) -> None:
    """Write every dataset of the published configs below `root`."""
    rng = np.random.default_rng(seed)
    for write in (ade20k, ade20k_full, cityscapes, coco_panoptic, coco_stuff_10k, mapillary_vistas):
        write(root, rng)


def random_labels(rng: Rng, classes: Sequence[int], void: int) -> NDArray:
    """Return an H×W label map of blocks: random ones of six `classes`, the last one `void`."""
    few = rng.choice(classes, 6, replace=False)
    blocks = rng.choice(few, (HEIGHT // BLOCK, WIDTH // BLOCK))
    blocks[-1, -1] = void
    return blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def write_image(path: Path, labels: NDArray, rng: Rng) -> None:
    """Write an image in which each class has its own colour, plus noise."""
    color = np.stack([labels * step % 256 for step in (37, 91, 151)], axis=-1)
    noisy = color + rng.integers(-20, 21, color.shape)
    save(path, np.clip(noisy, 0, 255).astype(np.uint8))


def save(path: Path, array: NDArray, palette: Sequence[int] | None = None) -> None:
    """Save an array as an image; ``palette`` lists R, G, B of each value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(array)
    if palette:
        image.putpalette(palette)
    image.save(path)


def write_sem_seg(
    base: Path,
    images: str,
    labels: str,
    splits: Sequence[str],
    rng: Rng,
    num_classes: int,
    *,
    ignore_label: int = 255,
    suffix: str = ".png",
    dtype: type = np.uint8,
    palette: Sequence[int] | None = None,
) -> None:
    """Write pairs of image and label map; "{}" in both folders stands for the split's name."""
    for name, count in zip(splits, COUNTS.values(), strict=True):
        for number in range(count):
            label_map = random_labels(rng, range(num_classes), ignore_label)
            stem = f"{name}_{number:08d}"
            write_image(base / images.format(name) / f"{stem}.jpg", label_map, rng)
            path = base / labels.format(name) / f"{stem}{suffix}"
            save(path, label_map.astype(dtype), palette)


PREPARED = ("images_detectron2/{}", "annotations_detectron2/{}")


def ade20k_full(root: Path, rng: Rng) -> None:
    """Write ADE20K-Full: 847 classes in 16-bit TIFFs."""
    base, splits = root / "ADE20K_2021_17_01", ("training", "validation")
    tiff = {"ignore_label": 65535, "suffix": ".tif", "dtype": np.uint16}
    write_sem_seg(base, *PREPARED, splits, rng, 847, **tiff)


def coco_stuff_10k(root: Path, rng: Rng) -> None:
    """Write COCO-Stuff-10K: 171 classes."""
    write_sem_seg(root / "coco" / "coco_stuff_10k", *PREPARED, ("train", "test"), rng, 171)


def mapillary_vistas(root: Path, rng: Rng) -> None:
    """Write Mapillary Vistas: label maps with a palette, as published; 65 is "unlabelled"."""
    base, splits = root / "mapillary_vistas", ("training", "validation")
    colors = [c.color or [0, 0, 0] for c in read_table("mapillary_vistas").categories]
    indexed = {"ignore_label": 65, "palette": [value for color in colors for value in color]}
    write_sem_seg(base, "{}/images", "{}/labels", splits, rng, 65, **indexed)


def write_panoptic(
    images: Path,
    panoptic: Path,
    categories: Sequence[Category],
    rng: Rng,
    count: int,
    *,
    image_id: Callable[[int], int | str],
    sem_seg: Path | None = None,
) -> None:
    """Write COCO's panoptic format: PNGs in `panoptic`, the JSON next to it; one thing is a crowd.

    Args:
        image_id: function from the number of an image to its id.
        sem_seg: folder for label maps of the contiguous class ids, if they are wanted.
    """
    image_entries, annotations = [], []
    for number in range(count):
        labels = random_labels(rng, range(len(categories)), void=255)
        name = image_id(number)
        stem = name if isinstance(name, str) else f"{name:012d}"
        write_image(images / f"{stem}.jpg", labels, rng)
        ids, segments = random_segments(labels, categories)
        if number == 0:
            next(info for info, category in segments if category.isthing)["iscrowd"] = 1
        panoptic.mkdir(parents=True, exist_ok=True)
        write_ids(panoptic / f"{stem}.png", ids)
        if sem_seg is not None:
            save(sem_seg / f"{stem}.png", labels.astype(np.uint8))
        size = {"height": HEIGHT, "width": WIDTH}
        image_entries.append({"id": name, "file_name": f"{stem}.jpg", **size})
        infos = [info for info, _ in segments]
        annotations.append({"image_id": name, "file_name": f"{stem}.png", "segments_info": infos})
    write_json(panoptic.with_suffix(".json"), categories, image_entries, annotations)


def random_segments(
    labels: NDArray, categories: Sequence[Category]
) -> tuple[NDArray, list[tuple[dict, Category]]]:
    """Return segment ids for a label map, and (segment info, category) of each segment.

    A stuff class is one segment; a thing class has one segment in each half of the image.
    """
    right_half = np.arange(WIDTH) >= WIDTH // 2
    is_thing = np.array([category.isthing for category in categories] + [False] * 256)
    keys = 2 * labels + (is_thing[labels] & right_half)
    ids = np.zeros(labels.shape, dtype=np.int32)
    classes: dict[int, Category] = {}
    for number, key in enumerate(np.unique(keys[labels != 255]), start=1):
        segment_id = 300 * number  # ids that need more than 8 bits
        ids[keys == key] = segment_id
        classes[segment_id] = categories[key // 2]
    infos = segments_info(ids, {i: category.dataset_id for i, category in classes.items()})
    return ids, [(info, classes[info["id"]]) for info in infos]


def ade20k(root: Path, rng: Rng) -> None:
    """Write ADE20K-150: label maps, and panoptic annotations of the same images."""
    base = root / "ADEChallengeData2016"
    for split, name in (("train", "training"), ("val", "validation")):
        write_panoptic(
            base / "images" / name,
            base / f"ade20k_panoptic_{split}",
            read_table("ade20k_panoptic").categories,
            rng,
            COUNTS[split],
            image_id=lambda number, split=split: f"ADE_{split}_{number:08d}",
            sem_seg=base / "annotations_detectron2" / name,
        )


def coco_panoptic(root: Path, rng: Rng) -> None:
    """Write COCO panoptic: 133 classes whose ids have gaps; image ids are integers."""
    base = root / "coco"
    categories = [
        Category(entry["name"], entry["id"], entry["color"], bool(entry["isthing"]))
        for entry in COCO_CATEGORIES
    ]
    for split in COUNTS:
        write_panoptic(
            base / f"{split}2017",
            base / f"panoptic_{split}2017",
            categories,
            rng,
            COUNTS[split],
            image_id=lambda number: 9 + 16 * number,
        )
        # COCO keeps its JSONs in a folder of their own.
        (base / "annotations").mkdir(exist_ok=True)
        name = f"panoptic_{split}2017.json"
        (base / name).rename(base / "annotations" / name)


def cityscapes(root: Path, rng: Rng) -> None:
    """Write Cityscapes: maps of label ids, training ids and instance ids, and polygon files."""
    known = [label for label in CITYSCAPES_LABELS if label.id >= 0]  # in the order of their ids
    train_ids = np.array([label.trainId for label in known], dtype=np.uint8)
    has_instances = np.array([label.hasInstances for label in known])
    polygons = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": []}
    for split, cities in (("train", ["aachen"]), ("val", ["frankfurt", "lindau"])):
        for number in range(COUNTS[split]):
            city = cities[number % len(cities)]
            stem = f"{city}/{city}_{number:06d}_000019_"
            labels = random_labels(rng, range(len(known)), void=0)
            labels[:BLOCK, :BLOCK] = 26  # a car: iIoU is undefined without any instance
            instances = np.where(has_instances[labels], 1000 * labels, labels)
            base = root / "cityscapes"
            write_image(base / "leftImg8bit" / split / f"{stem}leftImg8bit.png", labels, rng)
            annotation = f"{base}/gtFine/{split}/{stem}gtFine_"
            save(Path(annotation + "labelIds.png"), labels.astype(np.uint8))
            save(Path(annotation + "labelTrainIds.png"), train_ids[labels])
            save(Path(annotation + "instanceIds.png"), instances.astype(np.uint16))
            Path(annotation + "polygons.json").write_text(json.dumps(polygons))
