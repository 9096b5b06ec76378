"""Downloads in miniature with their real layout, and the `datasets/` scripts that prepare them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin import register_all_ade20k
from PIL import Image

from mask_former.config.loading import load_cfg
from mask_former.data.datasets.catalog import read_table, register_tables
from mask_former.data.formats.coco_panoptic import segments_info, write_ids, write_json
from mask_former.registries import DATASET_MAPPER_REGISTRY
from tests.helpers.paths import ROOT

HEIGHT, WIDTH = 40, 60


def save(path: Path, array: np.ndarray) -> Path:
    """Save an array as an image and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def save_photo(path: Path, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """Save a JPEG of noise, which is always the same for the same size."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return save(path, pixels)


def pixels(path: Path) -> np.ndarray:
    """Read the pixels of an image file as they are stored."""
    return np.asarray(Image.open(path))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Map each file below a folder to its content and modification time (ns)."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def contents(folder: Path) -> dict[str, bytes]:
    """Map each file below a folder to its content."""
    return {name: content for name, (content, _) in snapshot(folder).items()}


def registered(name: str, root: Path) -> list[dict[str, Any]]:
    """Register all datasets below `root`, also detectron2's ADE20K-150; return the dicts of one."""
    for split in ("train", "val"):
        if f"ade20k_sem_seg_{split}" in DatasetCatalog:
            DatasetCatalog.remove(f"ade20k_sem_seg_{split}")
            MetadataCatalog.remove(f"ade20k_sem_seg_{split}")
    register_all_ade20k(str(root))
    register_tables(root)
    return DatasetCatalog.get(name)


def training_example(config: str, record: dict[str, Any]) -> dict[str, Any]:
    """Apply the training mapper of a published config to a dataset dict, with seed 0."""
    cfg = load_cfg(str(ROOT / "configs" / config))
    mapper = DATASET_MAPPER_REGISTRY.get(cfg.INPUT.DATASET_MAPPER_NAME)(cfg, is_train=True)
    np.random.seed(0)
    return mapper(record)


# ------------------------------------------------------------------------------ ADE20K-150

ADE = "ADEChallengeData2016"
UNLABELLED, WALL, SKY, BED, PERSON = 0, 1, 3, 8, 13  # in annotations
BED_INSTANCE, PERSON_INSTANCE = 1, 4  # in annotations_instance


def ade_semantic() -> np.ndarray:
    """Draw sky over a wall, with an unlabelled corner, a bed and two persons."""
    labels = np.full((HEIGHT, WIDTH), WALL, np.uint8)
    labels[:20] = SKY
    labels[:4, :4] = UNLABELLED
    labels[22:34, 5:25] = BED
    labels[10:30, 40:46] = PERSON
    labels[10:20, 50:55] = PERSON
    return labels


def ade_instances() -> np.ndarray:
    """Draw two beds, one of which extends over the wall, and only the first person."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[22:36, 5:15] = BED_INSTANCE, 1, 9
    pixels[22:34, 15:25] = BED_INSTANCE, 2, 0
    pixels[10:30, 40:46] = PERSON_INSTANCE, 3, 0
    return pixels


def ade_tree(root: Path) -> None:
    """Write a download of ADE20K-150."""
    for split, names in (
        ("training", ["ADE_train_00000001", "ADE_train_00000002"]),
        ("validation", ["ADE_val_00000001"]),
    ):
        for name in names:
            save_photo(root / ADE / "images" / split / f"{name}.jpg")
            save(root / ADE / "annotations" / split / f"{name}.png", ade_semantic())
            save(root / ADE / "annotations_instance" / split / f"{name}.png", ade_instances())


# ----------------------------------------------------------------------------- ADE20K-Full

FULL = "ADE20K_2021_17_01"
LARGE = (600, 700)  # height, width in pixels


def full_objects(height: int, width: int) -> np.ndarray:
    """Return object indices: wall above, person below; at the right, no class, then no object."""
    objects = np.full((height, width), 2978)
    objects[height // 2 :] = 1831
    objects[:, -10:-5] = 5
    objects[:, -5:] = 0
    return objects


def full_annotation(objects: np.ndarray) -> np.ndarray:
    """Encode object indices like the dataset: R = 10·⌊index/256⌋ (+ 0 to 9), G = index mod 256."""
    offset = np.arange(objects.shape[1]) % 10
    blue = np.broadcast_to(np.arange(objects.shape[1]) % 256, objects.shape)
    rgb = np.stack([objects // 256 * 10 + offset, objects % 256, blue], axis=-1)
    return rgb.astype(np.uint8)


def full_tree(root: Path) -> None:
    """Write a download of ADE20K-Full."""
    for stem, size in (
        ("training/urban/street/ADE_train_00000001", (HEIGHT, WIDTH)),
        ("training/home_or_hotel/bedroom/ADE_train_00000002", LARGE),
        ("validation/urban/street/ADE_val_00000001", (HEIGHT, WIDTH)),
    ):
        path = root / FULL / "images" / "ADE" / stem
        save_photo(path.with_name(f"{path.name}.jpg"), *size)
        save(path.with_name(f"{path.name}_seg.png"), full_annotation(full_objects(*size)))
        save(path.with_name(f"{path.name}_parts_1.png"), np.zeros((*size, 3), np.uint8))


# -------------------------------------------------------------------------- COCO-Stuff-10K

STUFF = "coco/coco_stuff_10k"


def stuff_labels() -> np.ndarray:
    """Return a label map of v1.0: unlabelled is 1, the classes are 2 to 172."""
    labels = np.full((HEIGHT, WIDTH), 2, np.uint8)
    labels[20:] = 172
    labels[:, :7] = 1
    labels[5:9, 30:50] = 96
    return labels


def save_mat(path: Path, **arrays: np.ndarray) -> None:
    """Save like MATLAB 7.3: HDF5 after a header of 512 bytes, arrays in column order."""
    h5py = pytest.importorskip("h5py", reason="h5py is not installed")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array.T, compression="gzip")
    content = bytearray(path.read_bytes())
    content[:19] = b"MATLAB 7.3 MAT-file"
    path.write_bytes(content)


def stuff_tree(root: Path) -> None:
    """Write a download of COCO-Stuff-10K."""
    lists = {
        "train": ["COCO_train2014_000000000077", "COCO_train2014_000000000110"],
        "test": ["COCO_train2014_000000000349"],
    }
    for split, names in lists.items():
        path = root / STUFF / "imageLists" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\r\n".join(names) + "\r\n")
        for name in names:
            save_photo(root / STUFF / "images" / f"{name}.jpg")
            save_mat(root / STUFF / "annotations" / f"{name}.mat", S=stuff_labels())


# --------------------------------------------------------------------------- COCO panoptic

CAT, DOG, WALL_OF_COCO = 17, 18, 199  # category ids; the contiguous ones are 15, 16 and 131


def coco_ids() -> np.ndarray:
    """Draw a cat, a crowd of dogs, and a wall; a column without a segment stays 0."""
    ids = np.full((HEIGHT, WIDTH), 300, np.int32)
    ids[10:20, 5:30] = 7
    ids[25:, 30:50] = 65536
    ids[:, 55:] = 0
    return ids


def coco_tree(root: Path) -> None:
    """Write a download of COCO panoptic."""
    category_ids = {7: CAT, 300: WALL_OF_COCO, 65536: DOG}
    for split, names in (("train", ["000000000009", "000000000025"]), ("val", ["000000000139"])):
        for name in names:
            save_photo(root / f"coco/{split}2017/{name}.jpg")
            (root / f"coco/panoptic_{split}2017").mkdir(parents=True, exist_ok=True)
            write_ids(root / f"coco/panoptic_{split}2017/{name}.png", coco_ids())
        infos = segments_info(coco_ids(), category_ids)
        infos[2]["iscrowd"] = 1
        sizes = {"height": HEIGHT, "width": WIDTH}
        path = root / f"coco/annotations/panoptic_{split}2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(
            path,
            read_table("coco_panoptic").categories,
            [{"id": int(name), "file_name": f"{name}.jpg", **sizes} for name in names],
            [
                {"image_id": int(name), "file_name": f"{name}.png", "segments_info": infos}
                for name in names
            ],
        )


# ----------------------------------------------------------------------------- all datasets


@dataclass(frozen=True)
class Case:
    """A preparation script, the download that it reads, and the files that it writes."""

    script: str
    tree: Callable[[Path], None]
    """Function that writes the download below a folder."""
    sources: tuple[str, ...]
    """A file of each kind that the script reads."""
    targets: tuple[str, ...]
    """The files written for the first training image, the label map last."""
    datasets: tuple[str, str]
    """Registered names of the training and the validation set."""
    config: str
    json_only: bool = False
    """The script writes one JSON per split and no file per image."""


CASES = [
    Case(
        "prepare_ade20k_sem_seg",
        ade_tree,
        (f"{ADE}/annotations/training/ADE_train_00000001.png",),
        (f"{ADE}/annotations_detectron2/training/ADE_train_00000001.png",),
        ("ade20k_sem_seg_train", "ade20k_sem_seg_val"),
        "ade20k-150/maskformer_R50_bs16_160k.yaml",
    ),
    Case(
        "prepare_ade20k_full_sem_seg",
        full_tree,
        (
            f"{FULL}/images/ADE/training/home_or_hotel/bedroom/ADE_train_00000002.jpg",
            f"{FULL}/images/ADE/training/home_or_hotel/bedroom/ADE_train_00000002_seg.png",
        ),
        (
            f"{FULL}/images_detectron2/training/ADE_train_00000002.jpg",
            f"{FULL}/annotations_detectron2/training/ADE_train_00000002.tif",
        ),
        ("ade20k_full_sem_seg_train", "ade20k_full_sem_seg_val"),
        "ade20k-full-847/maskformer_R50_bs16_200k.yaml",
    ),
    Case(
        "prepare_ade20k_pan_seg",
        ade_tree,
        (
            f"{ADE}/images/training/ADE_train_00000001.jpg",
            f"{ADE}/annotations/training/ADE_train_00000001.png",
            f"{ADE}/annotations_instance/training/ADE_train_00000001.png",
        ),
        (f"{ADE}/ade20k_panoptic_train/ADE_train_00000001.png",),
        ("ade20k_panoptic_train", "ade20k_panoptic_val"),
        "ade20k-150-panoptic/maskformer_panoptic_R50_bs16_720k.yaml",
    ),
    Case(
        "prepare_coco_stuff_10k_sem_seg",
        stuff_tree,
        (
            f"{STUFF}/images/COCO_train2014_000000000077.jpg",
            f"{STUFF}/annotations/COCO_train2014_000000000077.mat",
        ),
        (
            f"{STUFF}/images_detectron2/train/COCO_train2014_000000000077.jpg",
            f"{STUFF}/annotations_detectron2/train/COCO_train2014_000000000077.png",
        ),
        ("coco_2017_train_stuff_10k_sem_seg", "coco_2017_test_stuff_10k_sem_seg"),
        "coco-stuff-10k-171/maskformer_R50_bs32_60k.yaml",
    ),
    Case(
        "prepare_ade20k_ins_seg",
        ade_tree,
        (
            f"{ADE}/images/training/ADE_train_00000001.jpg",
            f"{ADE}/annotations_instance/training/ADE_train_00000001.png",
        ),
        (f"{ADE}/ade20k_instance_train.json",),
        ("ade20k_instance_train", "ade20k_instance_val"),
        "coco-instance/maskformer_instance_R50_bs16_50ep.yaml",
        json_only=True,
    ),
    Case(
        "prepare_coco_semantic_annos_from_panoptic_annos",
        coco_tree,
        ("coco/panoptic_train2017/000000000009.png",),
        ("coco/panoptic_semseg_train2017/000000000009.png",),
        ("coco_2017_train_panoptic_with_sem_seg", "coco_2017_val_panoptic_with_sem_seg"),
        "coco-panoptic/maskformer_panoptic_R50_bs64_554k.yaml",
    ),
]
