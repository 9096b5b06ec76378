"""The published datasets in miniature: a few made-up images each, in the form that is trained on.

Only what training and evaluation read is there. `write_all` puts them all below one folder, to be
the `$DETECTRON2_DATASETS` of a process.
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
    """An H×W map of blocks: six of `classes`, and one block of `void`."""
    few = rng.choice(classes, 6, replace=False)
    blocks = rng.choice(few, (HEIGHT // BLOCK, WIDTH // BLOCK))
    blocks[-1, -1] = void
    return blocks.repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def write_picture(path: Path, labels: NDArray, rng: Rng) -> None:
    """An image in which each class has a colour of its own, with noise on top."""
    color = np.stack([labels * step % 256 for step in (37, 91, 151)], axis=-1)
    noisy = color + rng.integers(-20, 21, color.shape)
    save(path, np.clip(noisy, 0, 255).astype(np.uint8))


def save(path: Path, array: NDArray, palette: Sequence[int] | None = None) -> None:
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
    """Pairs of an image and a label map; "{}" in both folders stands for the split's name."""
    for name, count in zip(splits, COUNTS.values(), strict=True):
        for number in range(count):
            label_map = random_labels(rng, range(num_classes), ignore_label)
            stem = f"{name}_{number:08d}"
            write_picture(base / images.format(name) / f"{stem}.jpg", label_map, rng)
            path = base / labels.format(name) / f"{stem}{suffix}"
            save(path, label_map.astype(dtype), palette)


PREPARED = ("images_detectron2/{}", "annotations_detectron2/{}")


def ade20k_full(root: Path, rng: Rng) -> None:
    """847 classes in TIFFs of 16 bit."""
    base, splits = root / "ADE20K_2021_17_01", ("training", "validation")
    tiff = {"ignore_label": 65535, "suffix": ".tif", "dtype": np.uint16}
    write_sem_seg(base, *PREPARED, splits, rng, 847, **tiff)


def coco_stuff_10k(root: Path, rng: Rng) -> None:
    write_sem_seg(root / "coco" / "coco_stuff_10k", *PREPARED, ("train", "test"), rng, 171)


def mapillary_vistas(root: Path, rng: Rng) -> None:
    """Label maps with a palette, as they are published; 65 is "unlabelled"."""
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
    """COCO panoptic format: PNGs in `panoptic`, the JSON beside it; one thing is a crowd.

    Label maps of the contiguous classes go to `sem_seg`.
    """
    image_entries, annotations = [], []
    for number in range(count):
        labels = random_labels(rng, range(len(categories)), void=255)
        name = image_id(number)
        stem = name if isinstance(name, str) else f"{name:012d}"
        write_picture(images / f"{stem}.jpg", labels, rng)
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
    """The segment ids of a label map, and (description, category) of each segment.

    Stuff is one segment a class, a thing one in each half of the image.
    """
    right_half = np.arange(WIDTH) >= WIDTH // 2
    is_thing = np.array([category.isthing for category in categories] + [False] * 256)
    keys = 2 * labels + (is_thing[labels] & right_half)
    ids = np.zeros(labels.shape, dtype=np.int32)
    classes: dict[int, Category] = {}
    for number, key in enumerate(np.unique(keys[labels != 255]), start=1):
        segment_id = 300 * number  # more than 8 bit
        ids[keys == key] = segment_id
        classes[segment_id] = categories[key // 2]
    infos = segments_info(ids, {i: category.dataset_id for i, category in classes.items()})
    return ids, [(info, classes[info["id"]]) for info in infos]


def ade20k(root: Path, rng: Rng) -> None:
    """150 classes: label maps, and panoptic annotations of the same images."""
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
    """133 classes whose ids have gaps; numbers as image ids."""
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
        # The JSON lies elsewhere.
        (base / "annotations").mkdir(exist_ok=True)
        name = f"panoptic_{split}2017.json"
        (base / name).rename(base / "annotations" / name)


def cityscapes(root: Path, rng: Rng) -> None:
    """Label maps by id, by training id and by instance, and the files of the polygons."""
    known = [label for label in CITYSCAPES_LABELS if label.id >= 0]  # in the order of their ids
    train_ids = np.array([label.trainId for label in known], dtype=np.uint8)
    has_instances = np.array([label.hasInstances for label in known])
    polygons = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": []}
    for split, cities in (("train", ["aachen"]), ("val", ["frankfurt", "lindau"])):
        for number in range(COUNTS[split]):
            city = cities[number % len(cities)]
            stem = f"{city}/{city}_{number:06d}_000019_"
            labels = random_labels(rng, range(len(known)), void=0)
            labels[:BLOCK, :BLOCK] = 26  # a car: without any instance there is no iIoU
            instances = np.where(has_instances[labels], 1000 * labels, labels)
            base = root / "cityscapes"
            write_picture(base / "leftImg8bit" / split / f"{stem}leftImg8bit.png", labels, rng)
            annotation = f"{base}/gtFine/{split}/{stem}gtFine_"
            save(Path(annotation + "labelIds.png"), labels.astype(np.uint8))
            save(Path(annotation + "labelTrainIds.png"), train_ids[labels])
            save(Path(annotation + "instanceIds.png"), instances.astype(np.uint16))
            Path(annotation + "polygons.json").write_text(json.dumps(polygons))
