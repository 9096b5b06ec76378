"""The `shapes_panoptic` dataset on disk, in COCO panoptic format."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from iopath.common.file_io import file_lock

from ..datasets.table import read_table
from ..formats.coco_panoptic import segments_info, write_ids, write_image, write_json
from .scene import HEIGHT, WIDTH, scene

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Settings:
    """What the dataset is made of; kept beside it as settings.json."""

    num_train: int = 2000
    num_val: int = 200
    seed: int = 0
    version: int = 1  # of the drawing; counted up when the same seed gives other scenes

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_val) < 1 or self.seed < 0:
            raise ValueError(f"{self}: expected at least one scene a split, and a seed from 0.")


DEFAULT = Settings()


def generate(folder: str | Path, settings: Settings | None = None) -> None:
    """Make the dataset in `folder`, unless it is there already.

    Safe against several processes at once (one draws, the others wait) and against being killed
    (nothing is in `folder` before all of it is).

    Args:
        folder: will hold {train,val}/, panoptic_{train,val}/ and panoptic_{train,val}.json.
        settings: by default `DEFAULT`, and any seed and size that is there already will do.

    Raises:
        ValueError: what is there is of other settings, or was not made here.
    """
    folder = Path(folder)
    if folder.exists():
        return _check(folder, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(folder)):
        if folder.exists():  # made while this process waited
            return _check(folder, settings)
        unfinished = folder.with_name(f".{folder.name}.partial")
        if unfinished.exists():
            logger.info("Removing %s, which an interrupted run left.", unfinished)
            shutil.rmtree(unfinished)
        _write(unfinished, settings or DEFAULT)
        os.replace(unfinished, folder)
    logger.info("Shapes: ready in %s", folder)


def _check(folder: Path, wanted: Settings | None) -> None:
    try:
        found = Settings(**json.loads((folder / "settings.json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} was not made by datasets/prepare_shapes.py (no good settings.json there). "
            "Remove it, or give another folder."
        ) from error
    if wanted is None:
        wanted = Settings(found.num_train, found.num_val, found.seed)
    if found != wanted:
        raise ValueError(
            f"{folder} holds {found}, but {wanted} is asked for. Remove it, or give another folder."
        )


def _write(folder: Path, settings: Settings) -> None:
    table = read_table("shapes")
    category_ids = {c.name: c.dataset_id for c in table.categories}
    counts = {"train": settings.num_train, "val": settings.num_val}
    logger.info("Shapes: drawing %s scenes, once, into %s", counts, folder.parent)
    for number, split in enumerate(SPLITS):
        (folder / split).mkdir(parents=True)
        (folder / f"panoptic_{split}").mkdir()
        draw = partial(_write_scene, folder, split, (settings.seed, number), category_ids)
        images, annotations = [], []
        last = time.monotonic()
        for done, segments in enumerate(_map(draw, counts[split]), start=1):
            name = f"{done - 1:06d}.png"
            images.append({"id": done, "file_name": name, "height": HEIGHT, "width": WIDTH})
            annotations.append({"image_id": done, "file_name": name, "segments_info": segments})
            if done == counts[split] or time.monotonic() > last + 5:
                last = time.monotonic()
                logger.info("Shapes: %s %d of %d", split, done, counts[split])
        write_json(folder / f"panoptic_{split}.json", table.categories, images, annotations)
    content = json.dumps(asdict(settings))
    (folder / "settings.json").write_text(content + "\n", encoding="utf-8")


def _write_scene(
    folder: Path, split: str, seed: tuple[int, int], category_ids: dict[str, int], index: int
) -> list[dict[str, Any]]:
    image, ids, names = scene((*seed, index))
    name = f"{index:06d}.png"
    write_image(folder / split / name, image)
    write_ids(folder / f"panoptic_{split}" / name, ids)
    return segments_info(ids, {i: category_ids[name] for i, name in names.items()})


def _map(draw: partial[list[dict[str, Any]]], count: int) -> Iterator[list[dict[str, Any]]]:
    """`map(draw, range(count))` on all cores where processes can be forked cheaply."""
    workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if workers == 1 or count < 100 or multiprocessing.current_process().daemon:
        yield from map(draw, range(count))
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap(draw, range(count), chunksize=20)
