#!/usr/bin/env python3
"""Create the label maps of the datasets ``coco_2017_{train,val}_panoptic_with_sem_seg``.

    python datasets/prepare_coco_semantic_annos_from_panoptic_annos.py [--root DIR] [--workers N]

Below DIR/coco, the PNGs of panoptic_{train,val}2017 become those of panoptic_semseg_{train,val}2017
(classes 0 to 132, things first; 255 ignored). A split without a panoptic JSON is skipped. See
datasets/README.md. After an interruption, the same command continues where it stopped.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mask_former.data.datasets.catalog import Dataset, Table, read_table
from mask_former.data.formats.coco_json import located_errors, read_json
from mask_former.data.formats.coco_panoptic import write_image
from mask_former.data.formats.readers import read_segment_map
from mask_former.data.preparation.command import Job, make_ready, parallel_map, run_command
from mask_former.data.preparation.downloads import require

DOWNLOAD = (
    "http://images.cocodataset.org/annotations/panoptic_annotations_trainval2017.zip and the two "
    "archives of PNGs in it"
)
FORMAT = "COCO panoptic format"


class Item(NamedTuple):
    """One image: its files, and the class of each segment id."""

    job: Job
    classes: dict[int, int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(prepare, (__doc__ or "").splitlines()[0], DOWNLOAD, arguments)


def prepare(root: Path, workers: int = 1) -> None:
    """Write the label maps of each split.

    Raises:
        FileNotFoundError: if no split has a panoptic JSON, or one of its PNGs is missing.
        ValueError: if a file is damaged, or JSON and PNG disagree.
    """
    table = read_table("coco_panoptic")
    datasets = table.datasets.values()
    files = [root / str(dataset.panoptic_json) for dataset in datasets]
    present = [path for path in files if path.exists()]
    if not present:
        require(files)
    for dataset, path in zip(datasets, files, strict=True):
        if path in present:
            prepare_split(root, dataset, table, workers)
        else:
            print(f"{path} is missing: this split is skipped")


def prepare_split(root: Path, dataset: Dataset, table: Table, workers: int) -> None:
    """Write the label maps of one split that do not exist yet."""
    json_file, output = root / str(dataset.panoptic_json), root / str(dataset.sem_seg_root)
    content = read_json(json_file, FORMAT)
    ids, pngs = table.contiguous_ids(), root / str(dataset.panoptic_root)
    with located_errors(json_file, FORMAT):
        items = [find_item(a, ids, pngs, output, json_file) for a in content["annotations"]]
    todo = [item for item in items if not item.job.done]
    make_ready([item.job for item in todo])
    done = len(items) - len(todo)
    parallel_map(convert, todo, workers=workers, description=output.name, done=done)
    print(f"{output}: {len(items)} label maps")


def find_item(
    annotation: dict[str, Any], ids: dict[int, int], pngs: Path, output: Path, json_file: Path
) -> Item:
    """Read the files and classes of one annotation."""
    name = annotation["file_name"]
    if Path(name).name != name:
        raise ValueError(
            f"{json_file}: refused the file_name {name!r}, expected a name without a folder: the "
            "label map would be written outside the output folder. Correct the JSON."
        )
    infos = annotation["segments_info"]
    unknown = sorted({info["category_id"] for info in infos} - ids.keys())
    if unknown:
        raise ValueError(
            f"{json_file}: {name} has the categories {unknown}, expected COCO's 133. Is it the "
            "JSON of another dataset?"
        )
    classes = {info["id"]: ids[info["category_id"]] for info in infos}
    return Item(Job((pngs / name,), (output / name,)), classes)


def convert(item: Item) -> None:
    """Write one label map: the class of each segment, crowds included, and 255 elsewhere."""
    (source,), (target,) = item.job.sources, item.job.targets
    index_map = read_segment_map(str(source), list(item.classes))
    label_of = np.array([255, *item.classes.values()], dtype=np.uint8)
    write_image(target, label_of[index_map])


if __name__ == "__main__":
    sys.exit(main())
