#!/usr/bin/env python3
"""Convert COCO-Stuff-10K (v1.0) to the format of ``coco_2017_{train,test}_stuff_10k_sem_seg``.

    python datasets/prepare_coco_stuff_10k_sem_seg.py [--root DIR] [--workers N]

Below DIR/coco/coco_stuff_10k, the images that imageLists name are copied to images_detectron2, and
their .mat files become the label maps of annotations_detectron2 (classes from 0, 255 ignored). See
datasets/README.md. Needs h5py. After an interruption, the same command continues where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_former.data.datasets.catalog import read_table
from mask_former.data.formats.coco_panoptic import write_image
from mask_former.data.preparation.command import Job, convert_all, run_command
from mask_former.data.preparation.downloads import check_size, copy_file, read_image, require

DOWNLOAD = "cocostuff-10k-v1.0.zip of https://github.com/nightrome/cocostuff10k"
UNLABELLED = 1  # in the source, where the classes follow from 2
NUM_CLASSES = len(read_table("coco_stuff_10k").categories)
VALUES = range(UNLABELLED, UNLABELLED + NUM_CLASSES + 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, (__doc__ or "").splitlines()[0], DOWNLOAD, arguments)


def prepare(root: Path, workers: int = 1) -> None:
    """Write the images and label maps of both splits below ``root``/coco/coco_stuff_10k.

    Raises:
        FileNotFoundError: if a list, or a file that it names, is missing.
        ModuleNotFoundError: if h5py is not installed.
        ValueError: if a file is damaged, or has an unexpected form, size or value.
    """
    if find_spec("h5py") is None:
        raise ModuleNotFoundError("h5py, which reads the .mat files, is missing: pip install h5py")
    source = root / "coco" / "coco_stuff_10k"
    table = read_table("coco_stuff_10k")
    for split in ("train", "test"):
        dataset = table.datasets[f"coco_2017_{split}_stuff_10k_sem_seg"]
        outputs = root / dataset.image_root, root / str(dataset.sem_seg_root)
        names = read_list(source / "imageLists" / f"{split}.txt")
        jobs = [_job(source, name, *outputs) for name in names]
        convert_all(convert, jobs, workers=workers, description=split)
        print(f"{split}: {outputs[0]} and {outputs[1]}")


def read_list(path: Path) -> list[str]:
    """Read a list of images: names without suffix, one per line."""
    require([path])
    names = path.read_text(encoding="utf-8").split()
    if not names:
        raise ValueError(f"{path} is empty: expected the name of an image on each line.")
    return names


def _job(source: Path, name: str, images: Path, labels: Path) -> Job:
    return Job(
        (source / "images" / f"{name}.jpg", source / "annotations" / f"{name}.mat"),
        (images / f"{name}.jpg", labels / f"{name}.png"),
    )


def convert(image_path: Path, mat_path: Path, image_target: Path, label_target: Path) -> None:
    """Convert one image and its label map: label k becomes k - 2, and 1 (unlabelled) 255."""
    image, labels = read_image(image_path), read_mat(mat_path)
    check_size(mat_path, labels, image_path, image)
    copy_file(image_path, image_target)
    write_image(label_target, (labels - 2).astype(np.uint8))  # 1 - 2 wraps to 255 in 8 bits


def read_mat(path: Path) -> NDArray[np.int32]:
    """Read the H×W label map of a .mat file: 1 is unlabelled, the 171 classes are 2 to 172.

    The file is in MATLAB's HDF5 format with an array ``S``, which HDF5 shows as W×H.

    Raises:
        ValueError: if the file is damaged, or has another format or other values, as in v1.1.
    """
    import h5py  # optional, so not at the top

    try:
        with h5py.File(path, "r") as file:
            labels = np.asarray(file["S"]).T
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path} is not an HDF5 file with an array `S` ({error}): is it damaged, or of v1.1?"
        ) from error
    wrong = sorted(set(np.unique(labels).tolist()) - set(VALUES))
    if labels.ndim != 2 or wrong:
        raise ValueError(
            f"{path}: found an array of shape {labels.shape} with the values {wrong}, expected a "
            f"label map of v1.0: classes {VALUES[1]} to {VALUES[-1]}, {UNLABELLED} for unlabelled."
        )
    return labels.astype(np.int32)


if __name__ == "__main__":
    sys.exit(main())
