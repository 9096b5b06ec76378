"""Write the ``shapes_panoptic`` dataset to disk, in COCO panoptic format."""

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

from mask_former.utils.atomic_files import replace_text
from mask_former.utils.bounded_files import read_json

from ..datasets.table import read_table
from ..formats.coco_panoptic import segments_info, write_ids, write_image, write_json
from .scene import HEIGHT, WIDTH, scene

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")


@dataclass(frozen=True)
class Settings:
    """Size and seed of the dataset, saved with it in settings.json."""

    num_train: int = 2000
    num_val: int = 200
    seed: int = 0
    version: int = 1  # of the drawing code; incremented if a seed produces other scenes

    def __post_init__(self) -> None:
        if min(self.num_train, self.num_val) < 1 or self.seed < 0:
            raise ValueError(
                f"{self}: expected at least one scene per split, and a seed of 0 or more."
            )


DEFAULT = Settings()


def generate(folder: str | Path, settings: Settings | None = None) -> None:
    """Create the dataset in ``folder``, unless it exists already.

    Several processes may call this at once: one draws, the others wait. The folder is created
    atomically, so that a killed process leaves no incomplete dataset.

    Args:
        folder: will contain {train,val}/, panoptic_{train,val}/ and panoptic_{train,val}.json.
        settings: the size and seed; None: those of an existing dataset, else ``DEFAULT``.

    Raises:
        ValueError: if the folder contains a dataset with other settings, or something else.
    """
    folder = Path(folder)
    if folder.exists():
        return _check(folder, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with file_lock(str(folder)):
        if folder.exists():  # created while this process waited
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
        found = Settings(**read_json(folder / "settings.json"))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder} was not made by datasets/prepare_shapes.py (no valid settings.json in it). "
            "Remove it, or choose another folder."
        ) from error
    if wanted is None:
        wanted = Settings(found.num_train, found.num_val, found.seed)
    if found != wanted:
        raise ValueError(
            f"{folder} contains a dataset with {found}, but {wanted} is requested. Remove it, or "
            "choose another folder."
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
    replace_text(folder / "settings.json", content + "\n")


def _write_scene(
    folder: Path, split: str, seed: tuple[int, int], category_ids: dict[str, int], index: int
) -> list[dict[str, Any]]:
    image, ids, names = scene((*seed, index))
    name = f"{index:06d}.png"
    write_image(folder / split / name, image)
    write_ids(folder / f"panoptic_{split}" / name, ids)
    return segments_info(ids, {i: category_ids[name] for i, name in names.items()})


def _map(draw: partial[list[dict[str, Any]]], count: int) -> Iterator[list[dict[str, Any]]]:
    """Compute ``map(draw, range(count))``, on all cores where processes can be forked."""
    workers = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1
    if workers == 1 or count < 100 or multiprocessing.current_process().daemon:
        yield from map(draw, range(count))
        return
    with multiprocessing.get_context("fork").Pool(workers) as pool:
        yield from pool.imap(draw, range(count), chunksize=20)
