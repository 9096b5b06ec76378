"""Output of the network for one image, and the results at the sliders' settings."""

from __future__ import annotations

import shutil
import tempfile
import threading
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mask_former.predictor import ImageOutput
from mask_former.results import InstanceResult, Result

__all__ = ["FORMATS", "ImageResults", "Settings", "reduce"]

FORMATS = {
    "panoptic": ["overlay", "panoptic-coco", "npz"],
    "instance": ["overlay", "instances-coco", "npz"],
    "semantic": ["overlay", "semantic-png", "npz"],
}
"""The file formats in which each kind of result can be downloaded."""


@dataclass(frozen=True)
class Settings:
    """Values of the page's controls; thresholds, scores and opacity are in [0, 1]."""

    kind: str
    """"panoptic", "instance" or "semantic"."""
    object_mask_threshold: float
    """Class probability that a panoptic segment needs."""
    overlap_threshold: float
    """Share of its own mask that a panoptic segment must keep."""
    min_score: float
    """Score that an instance needs."""
    min_share: float
    """Share of the sum of all classes' scores that the best class of a pixel needs."""
    opacity: float
    """Opacity of the drawing over the image."""


_ONE_AT_A_TIME = threading.RLock()
"""Held while a result of the image's own size exists: 100 instances of 50 megapixels take 5 GB."""


class ImageResults:
    """Results of one forward pass, at any thresholds.

    Kept are the network's output and results that were reduced for a screen; a result of the
    image's own size is computed for each download.
    """

    def __init__(self, output: ImageOutput, name: str, summary: str = "") -> None:
        """Keep the output of a forward pass.

        Args:
            output: output of the network for the image.
            name: stem of its file, which names the downloads.
            summary: one line about the image and its forward pass.
        """
        self.name = name
        self.summary = summary
        self._output = output
        self._reduced: dict[str, tuple[tuple[float, ...], Result]] = {}  # kind -> key, result

    @property
    def nbytes(self) -> int:
        """Memory of the network's output and the kept results, in bytes."""
        return _nbytes((self._output, list(self._reduced.values())), set())

    def result(self, settings: Settings, max_side: int | None = None) -> Result:
        """Filter the result by the settings, for drawing and for downloads alike.

        Args:
            settings: thresholds, and the kind of result.
            max_side: longer side, in pixels, to which a larger image is reduced with its result.

        Raises:
            ValueError: if the model cannot make this kind of result.
        """
        if max_side is None:
            result = self._whole(settings)
        else:
            result = self._small(settings, max_side)
        if settings.kind == "instance" and result.instances is not None:
            return replace(result, instances=_at_least(result.instances, settings.min_score))
        if result.semantic is not None and result.semantic_scores is not None:
            semantic = result.semantic.copy()
            semantic[result.semantic_scores < settings.min_share] = -1
            return replace(result, semantic=semantic)
        return result

    def draw(self, settings: Settings) -> NDArray[np.uint8]:
        """Draw the result at the image's own size; the settings have filtered it."""
        with _ONE_AT_A_TIME:
            result = self.result(settings)
            return result.draw(settings.kind, threshold=0.0, opacity=settings.opacity)

    def _small(self, settings: Settings, max_side: int) -> Result:
        """Return the unfiltered result, reduced; the last one of each kind is kept."""
        key = (*_thresholds(settings), max_side)
        kept = self._reduced.get(settings.kind)
        if kept is None or kept[0] != key:
            with _ONE_AT_A_TIME:
                kept = key, reduce(self._whole(settings), max_side)
            self._reduced[settings.kind] = kept
        return kept[1]

    def _whole(self, settings: Settings) -> Result:
        """Compute the unfiltered result."""
        score, overlap = _thresholds(settings)
        return self._output.result(
            [settings.kind], object_mask_threshold=score, overlap_threshold=overlap
        )

    def pack(self, settings: Settings, formats: list[str], folder: Path) -> Path:
        """Write the result to files and pack them into an archive.

        Args:
            settings: thresholds, and the kind of result.
            formats: one or more of ``FORMATS[settings.kind]``.
            folder: folder of the archive; made if it is missing.

        Returns:
            Path of the archive, NAME_KIND.zip in a new subfolder.

        Raises:
            ValueError: if no format is given, or the model cannot make this kind of result.
        """
        formats = [one for one in formats if one in FORMATS[settings.kind]]
        if not formats:
            raise ValueError(f"Choose at least one of {', '.join(FORMATS[settings.kind])}.")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as files:
            with _ONE_AT_A_TIME:
                self.result(settings).save(files, *formats, name=self.name)
            base = Path(tempfile.mkdtemp(dir=folder)) / f"{self.name}_{settings.kind}"
            return Path(shutil.make_archive(str(base), "zip", files))


def reduce(result: Result, max_side: int) -> Result:
    """Reduce an image and its maps (nearest) to a longer side of at most ``max_side`` pixels."""
    height, width = result.image.shape[:2]
    factor = max_side / max(height, width)
    if factor >= 1:
        return result
    size = max(1, round(width * factor)), max(1, round(height * factor))
    image = Image.fromarray(result.image).resize(size, Image.Resampling.LANCZOS, reducing_gap=2)
    columns, rows = (
        ((np.arange(few) + 0.5) * many / few).astype(int)
        for few, many in zip(size, (width, height), strict=True)
    )
    grid = np.ix_(rows, columns)
    panoptic, instances = result.panoptic, result.instances
    return replace(
        result,
        image=np.asarray(image),
        semantic=None if result.semantic is None else result.semantic[grid],
        semantic_scores=None if result.semantic_scores is None else result.semantic_scores[grid],
        panoptic=panoptic and panoptic._replace(ids=panoptic.ids[grid]),
        instances=instances
        and replace(instances, masks=instances.masks[:, rows[:, None], columns[None]]),
    )


def _thresholds(settings: Settings) -> tuple[float, float]:
    """Return the thresholds that decide which segments exist; a change needs a new result."""
    if settings.kind != "panoptic":
        return 0.0, 0.0
    return settings.object_mask_threshold, settings.overlap_threshold


def _nbytes(value: Any, seen: set[int]) -> int:
    """Sum the sizes of the arrays and tensors in a value, each counted once."""
    if isinstance(value, np.ndarray | torch.Tensor):
        counted = id(value) in seen
        seen.add(id(value))
        return 0 if counted else value.nbytes
    if isinstance(value, dict):
        value = list(value.values())
    elif is_dataclass(value):
        value = list(vars(value).values())
    return sum(_nbytes(one, seen) for one in value) if isinstance(value, list | tuple) else 0


def _at_least(instances: InstanceResult, min_score: float) -> InstanceResult:
    """Keep the instances with at least this score; they are sorted by score."""
    count = int((instances.scores >= min_score).sum())
    return InstanceResult(
        instances.masks[:count],
        instances.boxes[:count],
        instances.scores[:count],
        instances.class_ids[:count],
        instances.class_names[:count],
    )
