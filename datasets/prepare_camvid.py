#!/usr/bin/env python3
"""Convert CamVid to the format of the datasets ``camvid_sem_seg_*`` and ``camvid_panoptic_*``.

    python datasets/prepare_camvid.py --source DIR [--output DIR] [--hold-out DRIVE]

DIR is either the original download (the SegNet tutorial's ``CamVid`` folder: train, trainannot, …)
or a folder of images/<split> and annotations/<split>. Label maps hold 0 to 10, and 11 for
"unlabelled". datasets/README.md lists the files that are written; a second run writes them again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from mask_former.data.datasets.catalog import Table, datasets_root, read_table
from mask_former.data.datasets.loaders import load_sem_seg
from mask_former.data.formats.coco_panoptic import segments_info, write_ids, write_image, write_json
from mask_former.data.preparation import downloads as files

SPLITS = ("train", "val", "test")
UNLABELLED = 11  # in the source; the output has the table's ignore label
MIN_INSTANCE_AREA = 50  # pixels at CamVid's 480×360


def main(arguments: list[str] | None = None) -> int:
    """Prepare all splits of the source, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--source", type=Path, required=True, help="folder of the download")
    parser.add_argument(
        "--output", type=Path, help="default: camvid in $DETECTRON2_DATASETS, or in ./datasets"
    )
    parser.add_argument(
        "--min-area",
        type=int,
        default=MIN_INSTANCE_AREA,
        help="smaller components of a thing class become void (pixels, default %(default)s)",
    )
    parser.add_argument(
        "--hold-out",
        metavar="DRIVE",
        help="train without a drive, such as 0006R0, and validate on it: the training images of "
        "DRIVE become val, the others train; give a separate --output",
    )
    args = parser.parse_args(arguments)
    output = args.output or datasets_root() / "camvid"
    try:
        prepare(args.source, output, args.min_area, args.hold_out)
    except (FileNotFoundError, ValueError) as error:
        print(f"prepare_camvid: {error}", file=sys.stderr)
        return 1
    return 0


def prepare(
    source: Path,
    output: Path,
    min_area: int = MIN_INSTANCE_AREA,
    held_out: str | None = None,
) -> None:
    """Write every split of ``source`` to ``output``.

    Args:
        source: the folder of the download.
        output: the folder to write to.
        min_area: the smallest instance, in pixels.
        held_out: a drive; only the train split is written then, divided into this drive as val and
            the others as train.

    Raises:
        FileNotFoundError: if the source is missing, has no split, or lacks a file.
        ValueError: if a label map has an unexpected size or value, or the training images are not
            of several drives with ``held_out`` among them.
    """
    table = read_table("camvid")
    if source.resolve() == output.resolve():
        raise ValueError(f"--source and --output are both {source}: give two different folders.")
    for split, records in read_splits(source, held_out).items():
        prepare_split(records, output, split, table, min_area)
    print(f"CamVid written to {output}")


def find_splits(source: Path) -> dict[str, tuple[Path, Path]]:
    """Find the folders of images and of label maps of each split, in either layout."""
    layouts = [{s: (source / "images" / s, source / "annotations" / s) for s in SPLITS}]
    for base in (source, source / "CamVid"):
        layouts.append({s: (base / s, base / f"{s}annot") for s in SPLITS})
    for layout in layouts:
        found = {split: pair for split, pair in layout.items() if any(p.is_dir() for p in pair)}
        for folder in (folder for pair in found.values() for folder in pair):
            if not folder.is_dir():
                raise FileNotFoundError(f"{folder} is missing, although its counterpart exists.")
        if found:
            return found
    raise FileNotFoundError(
        f"There is no CamVid in {source}: expected the folders train, trainannot, val, … of the "
        "SegNet tutorial's download, or images/train, annotations/train, …"
    )


def read_splits(source: Path, held_out: str | None) -> dict[str, list[dict[str, Any]]]:
    """List the images and label maps of each split to write, as dataset dicts."""
    folders = find_splits(source)
    if held_out is not None:
        if "train" not in folders:
            raise FileNotFoundError(f"--hold-out divides the train split, which {source} lacks.")
        return hold_out(load_sem_seg(*folders["train"]), held_out)
    for split in SPLITS:
        if split not in folders:
            print(f"{split}: skipped, because {source} does not have it")
    return {split: load_sem_seg(*folders[split]) for split in SPLITS if split in folders}


def hold_out(records: list[dict[str, Any]], drive: str) -> dict[str, list[dict[str, Any]]]:
    """Divide the images: those of ``drive`` become val, all others train.

    CamVid's file names consist of the drive, ``_`` and the frame.

    Raises:
        ValueError: if there are no images of the drive, or no others.
    """
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "val": []}
    for record in records:
        is_held_out = _drive(record) == drive
        splits["val" if is_held_out else "train"].append(record)
    if not all(splits.values()):
        raise ValueError(
            f"--hold-out {drive}: the training images have the drives "
            f"{sorted(set(map(_drive, records)))}; expected one of them, and at least one other."
        )
    return splits


def _drive(record: dict[str, Any]) -> str:
    return Path(record["file_name"]).name.split("_")[0]


def prepare_split(
    records: list[dict[str, Any]], output: Path, split: str, table: Table, min_area: int
) -> None:
    """Write images, label maps, panoptic maps and, last, the JSON of one split."""
    folders = [output / "images" / split, output / "annotations" / split]
    folders.append(output / f"panoptic_{split}")
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    names = {Path(record["file_name"]).name for record in records}
    _check_no_other_files(folders[0], names)
    for folder in folders[1:]:
        _check_no_other_files(folder, {f"{Path(name).stem}.png" for name in names})
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for record in tqdm(records, desc=split, unit="image"):
        image_path, label_path = Path(record["file_name"]), Path(record["sem_seg_file_name"])
        labels = read_labels(image_path, label_path)
        ids, category_ids = panoptic_ids(labels, table, min_area)
        png = f"{image_path.stem}.png"
        files.copy_file(image_path, folders[0] / image_path.name)
        write_image(folders[1] / png, np.where(labels == UNLABELLED, table.ignore_label, labels))
        write_ids(folders[2] / png, ids)
        image_id = len(images) + 1
        size = {"height": labels.shape[0], "width": labels.shape[1]}
        images.append({"id": image_id, "file_name": image_path.name, **size})
        annotations.append(
            {
                "image_id": image_id,
                "file_name": png,
                "segments_info": segments_info(ids, category_ids),
            }
        )
    write_json(output / f"panoptic_{split}.json", table.categories, images, annotations)


def read_labels(image_path: Path, label_path: Path) -> NDArray[np.uint8]:
    """Read an H×W label map with values up to UNLABELLED; check its size against the image."""
    meaning = f"classes 0 to {UNLABELLED - 1}, and {UNLABELLED} for unlabelled"
    labels = files.read_labels(label_path, UNLABELLED, meaning)
    files.check_size(label_path, labels, image_path, files.read_image(image_path))
    return labels


def panoptic_ids(
    labels: NDArray[np.uint8], table: Table, min_area: int
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Make the segments of a label map: one per stuff class, one per component of a thing class.

    CamVid has no instances, so 8-connected components of things stand for them. Those smaller than
    ``min_area`` pixels become void.

    Returns:
        H×W segment ids from 1 (0 is void), and segment id -> category id.
    """
    ids = np.zeros(labels.shape, np.int32)
    category_ids: dict[int, int] = {}
    for label, category in enumerate(table.categories):
        mask = (labels == label).astype(np.uint8)
        if category.isthing:
            _, components, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            large = [i for i, area in enumerate(stats[:, cv2.CC_STAT_AREA]) if area >= min_area]
            segments = [components == i for i in large if i != 0]  # 0 is the background
        else:
            segments = [mask == 1] if mask.any() else []
        for segment in segments:
            segment_id = len(category_ids) + 1
            category_ids[segment_id] = category.dataset_id
            ids[segment] = segment_id
    return ids, category_ids


def _check_no_other_files(folder: Path, names: set[str]) -> None:
    others = sorted({p.name for p in folder.iterdir() if p.name[0] != "."} - names)
    if others:
        raise ValueError(
            f"{folder} holds {len(others)} files that the source does not have, such as "
            f"{others[0]}. Remove that folder, or choose another --output."
        )


if __name__ == "__main__":
    sys.exit(main())
