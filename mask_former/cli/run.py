"""Pictures of any number through a model: in batches, the broken ones passed over, all counted.

Nothing is kept but the batch at hand, so that a folder or a video of any length fits into memory.
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
from mask_former.utils.errors import one_line

from .dataset_ids import DatasetIds, ImageId
from .media import VideoReader

__all__ = [
    "FAILURES",
    "Image",
    "Item",
    "Predict",
    "PredictionRun",
    "Use",
    "read_files",
    "read_frames",
]

FAILURES = (OSError, ValueError, KeyError, RuntimeError, MemoryError)
"""What one picture may fail with, out of memory among it, without ending the others."""

Image = NDArray[np.uint8]
Predict = Callable[[list[Image]], list[Result]]


@dataclass(frozen=True)
class Item:
    """One picture of a run: a file or a frame."""

    label: str
    """What messages call it."""
    name: str
    """Of what is saved of it, without suffix."""
    image: Image | None
    """H×W×3, RGB; None where it cannot be read."""
    image_id: ImageId | None = None
    """In the dataset that it comes from."""
    error: Exception | None = None
    """Why there is no image."""


def read_files(files: Iterable[tuple[Path, str]], ids: DatasetIds | None = None) -> Iterator[Item]:
    """Pictures of files, each read when its turn comes.

    Args:
        files: path and name of each.
        ids: of the dataset that they belong to; a file that is not in it is an error.
    """
    for file, name in files:
        try:
            image_id = ids.image_id(file) if ids else None
            yield Item(str(file), name, read_image(file), image_id)
        except FAILURES as error:
            yield Item(str(file), name, None, error=error)


def read_frames(reader: VideoReader, name: str) -> Iterator[Item]:
    """Pictures of a video's frames, called ``NAME_000000`` and so on."""
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
"""Takes an item, its result and the seconds that it took; False ends the run."""


class PredictionRun:
    """Runs a model over pictures and counts how it went.

    Attributes:
        done: the number of pictures that a result was made and used of.
        failed: the number of those that were passed over; each has a line in the log.
    """

    def __init__(self, predict: Predict, batch_size: int = 1) -> None:
        """
        Args:
            predict: one result an image, of images (H×W×3, RGB) in any number and of any sizes.
            batch_size: at most so many at once.
        """
        self._predict = predict
        self._batch_size = batch_size
        self._logger = logging.getLogger(__name__)
        self.done = 0
        self.failed = 0

    def over(self, items: Iterable[Item], use: Use) -> bool:
        """Predict and use the result of each picture in turn.

        Args:
            items: in any number; taken as far as the next batch needs.
            use: what to do with each result. Where it fails, the item has failed.

        Returns:
            False where ``use`` has ended it.
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
        """Count a picture as failed and say why, in a line that begins with its label."""
        self.failed += 1
        text = one_line(error)
        self._logger.error(text if text.startswith(label) else f"{label}: {text}")

    def _readable(self, items: Iterable[Item]) -> Iterator[Item]:
        for item in items:
            if item.error is None:
                yield item
            else:
                self.fail(item.label, item.error)

    def _results(self, batch: list[Item]) -> Iterator[tuple[Item, Result, float]]:
        """Of a batch; where it fails, of its items one by one."""
        start, results = time.perf_counter(), None
        try:
            results = self._predict([item.image for item in batch if item.image is not None])
        except FAILURES as error:
            if len(batch) == 1:
                self.fail(batch[0].label, error)
                return
        if results is None:  # outside `except`, which would hold on to the memory of the failure
            for item in batch:
                yield from self._results([item])
            return
        seconds = (time.perf_counter() - start) / len(batch)
        for item, result in zip(batch, results, strict=True):
            yield item, result, seconds
