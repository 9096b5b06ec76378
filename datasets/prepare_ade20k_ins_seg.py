#!/usr/bin/env python3
"""Create ADE20K's instance annotations for the datasets ``ade20k_instance_*``.

    python datasets/prepare_ade20k_ins_seg.py [--root DIR] [--workers N]

Below DIR/ADEChallengeData2016, annotations_instance becomes ade20k_instance_{train,val}.json in
COCO's instance format, with RLEs. See datasets/README.md. After an interruption, the same command
continues with the first split that has no JSON.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from mask_former.data.datasets.catalog import Dataset, read_table
from mask_former.data.datasets.loaders import load_sem_seg
from mask_former.data.formats.coco_panoptic import write_json
from mask_former.data.formats.rle import area_and_box, encode_label_map
from mask_former.data.preparation.ade20k import read_instances
from mask_former.data.preparation.command import Job, make_ready, parallel_map, run_command
from mask_former.data.preparation.downloads import check_size, read_image, require

DOWNLOAD = (
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and, for "
    "annotations_instance, "
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar"
)

read_table_once = cache(partial(read_table, "ade20k_instance"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, (__doc__ or "").splitlines()[0], DOWNLOAD, arguments)


def prepare(root: Path, workers: int = 1) -> None:
    """Write the JSON of each split.

    Raises:
        FileNotFoundError: if a folder is missing, or an image lacks its annotation.
        ValueError: if a file is damaged, or has an unexpected size, form or value.
    """
    datasets = read_table_once().datasets
    for split, folder in (("train", "training"), ("val", "validation")):
        prepare_split(root, folder, datasets[f"ade20k_instance_{split}"], workers)


def prepare_split(root: Path, folder: str, dataset: Dataset, workers: int) -> None:
    """Write the JSON of one split, unless it exists."""
    json_file = root / str(dataset.json_file)
    if json_file.exists():
        print(f"{json_file} exists already")
        return
    images, instances = root / dataset.image_root, json_file.parent / "annotations_instance"
    require([images, instances / folder])
    records = load_sem_seg(images, instances / folder)
    sources = [(Path(r["file_name"]), Path(r["sem_seg_file_name"])) for r in records]
    jobs = [Job(paths, (json_file,)) for paths in sources]
    make_ready(jobs)
    found = parallel_map(convert, jobs, workers=workers, description=folder)
    annotations = [annotation for _, objects in found for annotation in objects]
    numbered = [{"id": number} | a for number, a in enumerate(annotations, start=1)]
    write_json(json_file, read_table_once().categories, [image for image, _ in found], numbered)
    print(f"{json_file}: {len(found)} images, {len(numbered)} instances")


def convert(job: Job) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the JSON's entries of an image and of its instances, which get no id yet."""
    image_path, instance_path = job.sources
    table = read_table_once()
    instances = read_instances(instance_path, table.source_ids)
    image = read_image(image_path)
    check_size(instance_path, instances, image_path, image)
    category, number = instances[..., 0], instances[..., 1]
    keys = np.where(number > 0, category * np.uint16(256) + number, 0)  # one per instance
    annotations = []
    for key, rle in encode_label_map(keys).items():
        if key:
            area, box = area_and_box(rle)
            label = table.categories[table.source_ids[key // 256]].dataset_id
            annotation = {"image_id": image_path.stem, "category_id": label, "iscrowd": 0}
            annotations.append(annotation | {"segmentation": rle, "area": area, "bbox": box})
    size = {"height": image.height, "width": image.width}
    return {"id": image_path.stem, "file_name": image_path.name, **size}, annotations


if __name__ == "__main__":
    sys.exit(main())
