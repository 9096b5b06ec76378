#!/usr/bin/env python3
"""Create ADE20K's panoptic annotations for the datasets ``ade20k_panoptic_*``.

    python datasets/prepare_ade20k_pan_seg.py [--root DIR] [--workers N]

Below DIR/ADEChallengeData2016, annotations (for stuff) and annotations_instance (for things) become
ade20k_panoptic_{train,val} and their JSON files. The datasets also need the output of
prepare_ade20k_sem_seg.py. See datasets/README.md. After an interruption, the same command continues
where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mask_former.data.datasets.catalog import Dataset, Table, read_table
from mask_former.data.datasets.loaders import load_sem_seg
from mask_former.data.formats.coco_panoptic import segments_info, write_ids, write_json
from mask_former.data.preparation.ade20k import read_instances
from mask_former.data.preparation.command import Job, make_ready, parallel_map, run_command
from mask_former.data.preparation.downloads import check_size, read_image, read_labels, require

DOWNLOAD = (
    "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip and, for "
    "annotations_instance, "
    "http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar"
)
NO_CLASS = -1

read_table_once = cache(partial(read_table, "ade20k_panoptic"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, (__doc__ or "").splitlines()[0], DOWNLOAD, arguments)


def prepare(root: Path, workers: int = 1) -> None:
    """Write the panoptic PNGs of each split and then its JSON.

    Raises:
        FileNotFoundError: if a folder is missing, or an image lacks one of its annotations.
        ValueError: if a file is damaged, or has an unexpected size, form or value.
    """
    table = read_table_once()
    for split, folder in (("train", "training"), ("val", "validation")):
        dataset = table.datasets[f"ade20k_panoptic_{split}"]
        prepare_split(root, folder, dataset, table, workers)


def prepare_split(root: Path, folder: str, dataset: Dataset, table: Table, workers: int) -> None:
    """Write one split, unless it is complete."""
    output, json_file = root / str(dataset.panoptic_root), root / str(dataset.panoptic_json)
    jobs = find_jobs(root / dataset.image_root, json_file.parent, folder, output)
    if json_file.exists() and all(job.done for job in jobs):
        print(f"{json_file} and all its PNGs exist already")
        return
    make_ready(jobs)
    found = parallel_map(convert, jobs, workers=workers, description=folder)
    images = [image for image, _ in found]
    write_json(json_file, table.categories, images, [annotation for _, annotation in found])
    print(f"{json_file}: {len(images)} images, PNGs in {output}")


def find_jobs(images: Path, base: Path, folder: str, output: Path) -> list[Job]:
    """List one job per image, with the image and both its annotations as sources."""
    semantic, instances = base / "annotations" / folder, base / "annotations_instance" / folder
    require([images, semantic, instances])
    jobs = []
    both = load_sem_seg(images, semantic), load_sem_seg(images, instances)
    for first, second in zip(*both, strict=True):
        names = first["file_name"], first["sem_seg_file_name"], second["sem_seg_file_name"]
        sources = tuple(map(Path, names))
        jobs.append(Job(sources, (output / f"{sources[0].stem}.png",)))
    return jobs


def convert(job: Job) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write one PNG if it is missing; return the JSON's entries of image and annotation."""
    image_path, semantic_path, instance_path = job.sources
    (target,) = job.targets
    table = read_table_once()
    count = len(table.categories)
    meaning = f"classes 1 to {count}, and 0 for unlabelled"
    semantic = read_labels(semantic_path, count, meaning)
    instances = read_instances(instance_path, table.source_ids)
    image = read_image(image_path)
    check_size(semantic_path, semantic, image_path, image)
    check_size(instance_path, instances, image_path, image)
    ids, category_ids = panoptic_ids(semantic, instances, table)
    if not target.exists():
        write_ids(target, ids)
    size = {"height": image.height, "width": image.width}
    segments = segments_info(ids, category_ids)
    return (
        {"id": image_path.stem, "file_name": image_path.name, **size},
        {"image_id": image_path.stem, "file_name": target.name, "segments_info": segments},
    )


def panoptic_ids(
    semantic: NDArray[np.uint8], instances: NDArray[np.uint8], table: Table
) -> tuple[NDArray[np.int32], dict[int, int]]:
    """Make the segments of an image: one per stuff class of the semantic map, one per instance.

    Instances take precedence over the semantic map. Other pixels become void if the map does not
    label them, or labels them as a thing, whose instance is then unknown.

    Args:
        semantic: H×W, 0 unlabelled, classes from 1.
        instances: H×W×2; see ``mask_former.data.preparation.ade20k.read_instances``.
        table: the table of the datasets.

    Returns:
        H×W segment ids from 1 (0 is void), and segment id -> category id.
    """
    stuff = [NO_CLASS, *(NO_CLASS if c.isthing else i for i, c in enumerate(table.categories))]
    classes = np.array(stuff, np.int32)[semantic]
    things = np.full(256, NO_CLASS, np.int32)
    things[list(table.source_ids)] = list(table.source_ids.values())
    category, number = instances[..., 0], instances[..., 1].astype(np.int32)
    classes = np.where(number > 0, things[category], classes)
    # One key per segment, from its class and its number, which is below 256, and 0 for stuff.
    keys = np.where(classes == NO_CLASS, 0, 1 + classes * 256 + number)
    present = np.flatnonzero(np.bincount(keys.ravel()))
    present = present[present > 0]
    id_of_key = np.zeros(keys.max() + 1, np.int32)
    id_of_key[present] = np.arange(1, len(present) + 1)
    category_ids = {
        int(id_of_key[key]): table.categories[(key - 1) // 256].dataset_id for key in present
    }
    return id_of_key[keys], category_ids


if __name__ == "__main__":
    sys.exit(main())
