#!/usr/bin/env python3
"""Convert ADE20K's label maps to the format of the datasets ``ade20k_sem_seg_*``.

    python datasets/prepare_ade20k_sem_seg.py [--root DIR] [--workers N]

Below DIR/ADEChallengeData2016, annotations (0 unlabelled, classes from 1) become
annotations_detectron2 (classes from 0, 255 ignored). See datasets/README.md. After an interruption,
the same command continues where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mask_former.data.datasets.catalog import read_table
from mask_former.data.datasets.loaders import load_sem_seg
from mask_former.data.formats.coco_panoptic import write_image
from mask_former.data.preparation.command import Job, convert_all, run_command
from mask_former.data.preparation.downloads import read_labels, require

DOWNLOAD = "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
FOLDER = "ADEChallengeData2016"
NUM_CLASSES = len(read_table("ade20k_panoptic").categories)
VALUES = f"classes 1 to {NUM_CLASSES}, and 0 for unlabelled"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, (__doc__ or "").splitlines()[0], DOWNLOAD, arguments)


def prepare(root: Path, workers: int = 1) -> None:
    """Write ``root``/ADEChallengeData2016/annotations_detectron2.

    Raises:
        FileNotFoundError: if a folder is missing, or an image or label map has no partner.
        ValueError: if a label map is damaged, or has an unexpected form or value.
    """
    base = root / FOLDER
    for split in ("training", "validation"):
        images, labels = base / "images" / split, base / "annotations" / split
        output = base / "annotations_detectron2" / split
        require([images, labels])
        sources = [Path(record["sem_seg_file_name"]) for record in load_sem_seg(images, labels)]
        jobs = [Job((path,), (output / f"{path.stem}.png",)) for path in sources]
        convert_all(convert, jobs, workers=workers, description=split)
    print(f"Label maps written to {base / 'annotations_detectron2'}")


def convert(source: Path, target: Path) -> None:
    """Convert one label map: class k becomes k - 1, and 0 (unlabelled) becomes 255."""
    labels = read_labels(source, NUM_CLASSES, VALUES)
    write_image(target, labels - np.uint8(1))  # 0 - 1 wraps to 255 in 8 bits


if __name__ == "__main__":
    sys.exit(main())
