#!/usr/bin/env python3
"""Convert the full ADE20K to the format of the datasets ``ade20k_full_sem_seg_*``.

    python datasets/prepare_ade20k_full_sem_seg.py [--root DIR] [--workers N]

Below DIR/ADE20K_2021_17_01, images/ADE becomes images_detectron2 and annotations_detectron2: 847
classes in 16-bit TIFFs, 65535 ignored, with shorter sides of at most 512 pixels. See
datasets/README.md. After an interruption, the same command continues where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mask_former.data.datasets.catalog import read_table
from mask_former.data.preparation.command import Job, convert_all, run_command
from mask_former.data.preparation.downloads import check_size, copy_file, read_image, require
from mask_former.utils.weight_files import replace_file

DOWNLOAD = (
    "ADE20K_2021_17_01.zip, available after registration at "
    "https://groups.csail.mit.edu/vision/datasets/ADE20K"
)
MAX_SHORTER_SIDE = 512  # pixels
JPEG_QUALITY = 95
COMPRESSION = "tiff_adobe_deflate"  # lossless


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, (__doc__ or "").splitlines()[0], DOWNLOAD, arguments)


def prepare(root: Path, workers: int = 1) -> None:
    """Write the images and label maps of both splits below ``root``/ADE20K_2021_17_01.

    Raises:
        FileNotFoundError: if the source is missing, or an image has no ``_seg.png`` next to it.
        ValueError: if a file is damaged, or image and annotation differ in size.
    """
    source = root / "ADE20K_2021_17_01" / "images" / "ADE"
    require([source / "training", source / "validation"])
    images = find_images(source)
    table = read_table("ade20k_full")
    for split in ("train", "val"):
        dataset = table.datasets[f"ade20k_full_sem_seg_{split}"]
        of_split = [path for path in images if ("_val_" in path.name) == (split == "val")]
        if not of_split:
            raise FileNotFoundError(f"{source} holds no image (*.jpg) of the {split} split.")
        outputs = root / dataset.image_root, root / str(dataset.sem_seg_root)
        jobs = [_job(path, *outputs) for path in of_split]
        convert_all(convert, jobs, workers=workers, description=split)
        print(f"{split}: {outputs[0]} and {outputs[1]}")


def find_images(folder: Path) -> list[Path]:
    """List all images below a folder, and also missing images that have an annotation."""
    images = {path for path in folder.rglob("*.jpg") if not path.name.startswith(".")}
    for path in folder.rglob("*_seg.png"):
        images.add(path.with_name(f"{path.stem.removesuffix('_seg')}.jpg"))
    return sorted(images)


def _job(image: Path, images: Path, labels: Path) -> Job:
    return Job(
        (image, image.with_name(f"{image.stem}_seg.png")),
        (images / image.name, labels / f"{image.stem}.tif"),
    )


def convert(image_path: Path, seg_path: Path, image_target: Path, label_target: Path) -> None:
    """Convert one image and its label map, and reduce them if they are too large."""
    image, seg = read_image(image_path), read_image(seg_path)
    check_size(seg_path, np.asarray(seg), image_path, image)
    size = reduced_size(*image.size)
    if size == image.size:
        copy_file(image_path, image_target)
    else:
        seg = seg.resize(size, Image.Resampling.NEAREST)
        resized = image.resize(size, Image.Resampling.BILINEAR)
        replace_file(image_target, partial(resized.save, format="JPEG", quality=JPEG_QUALITY))
    labels = Image.fromarray(decode(np.asarray(seg), seg_path))
    replace_file(label_target, partial(labels.save, format="TIFF", compression=COMPRESSION))


def reduced_size(width: int, height: int) -> tuple[int, int]:
    """Return (width, height) in pixels with a shorter side of 512 pixels at most."""
    scale = min(1.0, MAX_SHORTER_SIDE / min(width, height))
    return round(width * scale), round(height * scale)


def decode(seg: NDArray[np.uint8], path: Path) -> NDArray[np.uint16]:
    """Decode the class ids of an annotation: pixel (R, G, B) has the object index ⌊R/10⌋·256 + G.

    Args:
        seg: H×W×3, RGB; B, the number of the object among those of its class, is not used.
        path: path of the annotation, for the error message.

    Returns:
        Class ids, H×W; 65535 for objects of none of the 847 classes.

    Raises:
        ValueError: if the annotation is not an RGB image.
    """
    if seg.ndim != 3 or seg.dtype != np.uint8:
        raise ValueError(
            f"{path}: found an array of {seg.dtype} {seg.shape}, expected an 8-bit RGB PNG."
        )
    return _classes()[seg[..., 0] // 10 * np.int32(256) + seg[..., 1]]


@cache
def _classes() -> NDArray[np.uint16]:
    """Return the class id or ignore label of each object index."""
    table = read_table("ade20k_full")
    classes = np.full(26 * 256, table.ignore_label, np.uint16)  # ⌊R/10⌋ is at most 25
    classes[list(table.source_ids)] = list(table.source_ids.values())
    return classes


if __name__ == "__main__":
    sys.exit(main())
