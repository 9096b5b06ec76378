"""Run a model over any number of images in batches; skip and count those that fail.

Only the current batch is kept, so that a folder or a video of any length fits into memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mask_former.predictor.images import read_image
from mask_former.results import Result
from mask_former.utils.errors import one_line, printable

from .dataset_ids import DatasetIds, ImageId
from .media import VIDEO_SUFFIXES, VideoReader

__all__ = [
    "FAILURES",
    "Item",
    "Predict",
    "PredictionRun",
    "Use",
    "read_files",
    "read_frames",
]

FAILURES = (OSError, ValueError, KeyError, RuntimeError, MemoryError)
"""Errors (including out of memory) that fail one image but not the run."""

Predict = Callable[[list[NDArray[np.uint8]]], list[Result]]
"""Function from images (H×W×3, RGB) to one result for each."""


@dataclass(frozen=True)
class Item:
    """One image of a run: a file or a frame."""

    label: str
    """Its name in messages."""
    name: str
    """Stem of its output files."""
    image: NDArray[np.uint8] | None
    """H×W×3, RGB; None if it cannot be read."""
    image_id: ImageId | None = None
    """Its id in the dataset."""
    error: Exception | None = None
    """The error if the image could not be read."""


def read_files(files: Iterable[tuple[Path, str]], ids: DatasetIds | None = None) -> Iterator[Item]:
    """Read the images of files, one at a time.

    Args:
        files: Path and name of each image.
        ids: Ids of the dataset that the files belong to; a file that is not in it is an error.
    """
    for file, name in files:
        try:
            image_id = ids.image_id(file) if ids else None
            yield Item(str(file), name, read_image(file), image_id)
        except FAILURES as error:
            video = file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()
            hint = ValueError(f"{file} is a video: give it to demo.py with --video-input")
            yield Item(str(file), name, None, error=hint if video else error)


def read_frames(reader: VideoReader, name: str) -> Iterator[Item]:
    """Read the frames of a video, named ``NAME_000000`` and so on."""
    while True:
        try:
            image, error = next(reader), None
        except StopIteration:
            return
        except FAILURES as caught:
            image, error = None, caught
        label = f"{reader.name}, frame {reader.index}"
        yield Item(label, f"{name}_{reader.index:06d}", image, error=error)


Use = Callable[[Item, Result, float], bool]
"""Function of an item, its result and the seconds that it took; False ends the run."""


class PredictionRun:
    """Run of a model over images that counts successes and failures.

    Attributes:
        done: Number of images whose result was computed and used.
        failed: Number of images that were skipped; each has a line in the log.
    """

    def __init__(self, predict: Predict, batch_size: int = 1) -> None:
        """Set up a run.

        Args:
            predict: Function that runs the model on any number of images of any sizes.
            batch_size: Largest number of images in one call.
        """
        self._predict = predict
        self._batch_size = batch_size
        self._logger = logging.getLogger(__name__)
        self.done = 0
        self.failed = 0

    def over(self, items: Iterable[Item], use: Use) -> bool:
        """Predict the result of each image, and use it, in order.

        Args:
            items: Any number of images; one batch is taken at a time.
            use: Function that uses a result. If it fails, the item counts as failed.

        Returns:
            False if ``use`` ended the run.
        """
        readable = self._readable(items)
        while batch := list(islice(readable, self._batch_size)):
            for item, result, seconds in self._results(batch):
                try:
                    go_on = use(item, result, seconds)
                except FAILURES as error:
                    self.fail(item.label, error)
                    continue
                self.done += 1
                if not go_on:
                    return False
        return True

    def fail(self, label: str, error: Exception) -> None:
        """Count an image as failed and log the reason, in a line that begins with its label."""
        self.failed += 1
        text, label = one_line(error), printable(label)
        self._logger.error(text if text.startswith(label) else f"{label}: {text}")

    def _readable(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.error is None:
                yield item
            else:
                self.fail(item.label, item.error)

    def _results(self, batch: list[Item]) -> Iterator[tuple[Item, Result, float]]:
        """Yield the results of a batch; if it fails, predict its items one by one."""
        start, results = time.perf_counter(), None
        try:
            results = self._predict([item.image for item in batch if item.image is not None])
        except FAILURES as error:
            if len(batch) == 1:
                self.fail(batch[0].label, error)
                return
        if results is None:  # outside `except`, which keeps the memory of the failed batch alive
            for item in batch:
                yield from self._results([item])
            return
        seconds = (time.perf_counter() - start) / len(batch)
        for item, result in zip(batch, results, strict=True):
            yield item, result, seconds
