"""Large images by overlapping windows: the network sees one window at a time (semantic only)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from mask_former.ops import LazyMasks
from mask_former.structures import Size

from .logits import ImageLogits
from .semantic import best_classes, class_probability

__all__ = ["SlidingWindow", "WindowLogits", "blend_weights", "window_starts"]

_GRANULE = 32
"""Pixels: the stride is a multiple of it where the config does not say another."""

_BAND_ROWS = 16
"""How many rows are blended at once: those of one window, of 100 queries, fit a CPU's cache."""

_BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 21}
"""Pixels of the windows that are run at once, at least one window."""


@dataclass(frozen=True)
class SlidingWindow:
    """``TEST.SLIDING_WINDOW``."""

    size: int
    """Side of the window, in pixels of the network's input."""
    stride: int = 0
    """Pixels from one window to the next; 0: 2/3 of ``size``, rounded to a multiple of 32."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.SIZE is {self.size}, expected 1 or more pixels (0: no "
                "windows)."
            )
        if not 0 <= self.stride <= self.size:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.STRIDE is {self.stride}, expected 1 … {self.size} pixels, "
                "which TEST.SLIDING_WINDOW.SIZE is, lest windows leave gaps (0: 2/3 of it)."
            )

    @classmethod
    def of(
        cls, size: int, stride: int, *, panoptic_on: bool, instance_on: bool
    ) -> SlidingWindow | None:
        """The window of a config, None where it is off.

        Raises:
            ValueError: if the numbers make no sense, or results are on that windows cannot give;
                names the keys.
        """
        if not size:
            if stride:
                raise ValueError(
                    f"TEST.SLIDING_WINDOW.STRIDE is {stride}, but TEST.SLIDING_WINDOW.SIZE is 0, "
                    "which means no windows: set the side of a window, or the stride to 0."
                )
            return None
        on = {"PANOPTIC_ON": panoptic_on, "INSTANCE_ON": instance_on}
        for key in (key for key, is_on in on.items() if is_on):
            raise ValueError(
                f"TEST.SLIDING_WINDOW.SIZE is {size} and MODEL.MASK_FORMER.TEST.{key} True, but "
                "windows give a semantic result alone: what two windows see of an object is not "
                f"put together. Set MODEL.MASK_FORMER.TEST.{key} False, or the SIZE to 0."
            )
        return cls(size, stride)

    def covers(self, image: Sequence[int]) -> bool:
        """Whether an image of that height and width is one window."""
        return max(image) <= self.size

    @property
    def step(self) -> int:
        """The stride in pixels."""
        default = max(round(2 * self.size / 3 / _GRANULE) * _GRANULE, _GRANULE)
        return self.stride or min(default, self.size)


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows begin along an axis; the last one is moved inwards, so that all fit."""
    last = length - size
    return [*range(0, last, stride), last] if last > 0 else [0]


def blend_weights(length: int, size: int, stride: int) -> Tensor:
    """What the pixels of each window weigh along an axis: n×min(size, length), fp32.

    They fall in a straight line towards the window's edges, where the network has seen the least
    of the surroundings and another window takes over, and sum to 1 at each pixel. A plain mean
    leaves seams: on CamVid, with windows of 256, scores differ across a window's edge five times as
    much as between other pixels, and 1.4 times with these weights; curves do no better.
    """
    size = min(size, length)
    starts = window_starts(length, size, stride)
    distance = torch.arange(size, dtype=torch.float64) + 0.5
    tent = torch.minimum(distance, distance.flip(0))
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += tent
    return torch.stack([tent / total[start : start + size] for start in starts]).float()


@dataclass(frozen=True, eq=False)
class WindowLogits:
    """The semantic result of an image from overlapping windows, their class scores blended.

    Nothing is kept of a window whose rows are done. What its network says is 2 to 6 MB, that of a
    large photo's windows together 1 GB and more; so the network is run while a result is made,
    from top to bottom, once a window, and no more than the windows of two or three rows are held.
    The map is kept, and asking for it again runs nothing.

    The blended scores are resized to the output; mask logits, which in each window are of other
    queries, cannot be (``SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE`` has no say).
    """

    image: Tensor
    """3×H×W, as the mapper hands it over."""
    window: SlidingWindow
    run: Callable[[list[Tensor]], list[ImageLogits]]
    """The network: some 3×h×w parts of the image, all of one size, to their logits."""
    output_size: Size
    """Of the results."""
    num_classes: int
    """K."""
    device: torch.device
    """Of the network and the results."""

    def semantic_scores(self) -> Tensor:
        """How much speaks for each class; runs the network.

        Returns:
            K×H×W of the output's size, fp32, values ≥ 0.
        """
        result = torch.empty(self.num_classes, *self.output_size, device=self.device)
        for rows, band in self._bands():
            result[:, rows] = band.transpose(0, 1)
        return result

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """The best class of each pixel and its share of the sum of all classes' scores.

        K×H×W is never held. The first call runs the network.

        Returns:
            H×W int64 and H×W fp32 in [0, 1], as :meth:`ImageLogits.semantic_map` gives them.
        """
        ids, shares = self._map
        return ids.long(), shares.clone()

    def panoptic(self, **options: Any) -> NoReturn:
        """Raises a ValueError: windows give a semantic result alone."""
        self._refuse("panoptic")

    def instances(self, **options: Any) -> NoReturn:
        """Raises a ValueError: windows give a semantic result alone."""
        self._refuse("instance")

    def _refuse(self, kind: str) -> NoReturn:
        height, width = self.image.shape[-2:]
        raise ValueError(
            f"There is no {kind} result of an image of {width}×{height} pixels with "
            f"TEST.SLIDING_WINDOW.SIZE {self.window.size}: windows give a semantic result alone. "
            "Set TEST.SLIDING_WINDOW.SIZE to 0."
        )

    @cached_property
    def _map(self) -> tuple[Tensor, Tensor]:
        ids, shares = best_classes(self._bands(), self.output_size, self.device)
        return ids.short(), shares

    @torch.no_grad()
    def _bands(self) -> Iterator[tuple[slice, Tensor]]:
        """Blended scores, resized to the output: (which rows, R×K×W), for the caller to write in.

        The network's precision is ``TEST.AMP``'s, whatever the caller's autocast.
        """
        scores = _BlendedScores(self)
        height, output = scores.size[0], self.output_size[0]
        rows = max(1, _BAND_ROWS * output // max(height, output))  # as many as are blended for it
        bands = LazyMasks(scores).resize(self.output_size).bands(rows=rows)
        while True:
            with torch.autocast(self.device.type, enabled=False):
                band = next(bands, None)
            if band is None:
                return
            yield band


class _Window(NamedTuple):
    """What the network says of one window."""

    left: int
    weight: Tensor
    """Of its columns."""
    probability: Tensor
    """K×Q, of classes."""
    masks: LazyMasks
    """Q×h×w, logits, of the window's size."""


class _BlendedScores:
    """K×H×W of an image's size, computed by rows, which are to be asked for from top to bottom."""

    dtype, requires_grad = torch.float32, False

    def __init__(self, logits: WindowLogits) -> None:
        self._logits = logits
        self.device = logits.device
        self.size: Size = (logits.image.shape[-2], logits.image.shape[-1])
        window = logits.window
        self._side: Size = (min(window.size, self.size[0]), min(window.size, self.size[1]))
        self._tops, self._lefts = (
            window_starts(length, window.size, window.step) for length in self.size
        )
        self._row_weights, self._column_weights = (
            blend_weights(length, window.size, window.step).to(self.device) for length in self.size
        )
        self._open: dict[int, list[_Window]] = {}
        """The windows that still have rows to give, by the number of their top."""

    def __len__(self) -> int:
        return self._logits.num_classes

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start … stop-1``: R×K×W, fp32."""
        result = torch.zeros(stop - start, len(self), self.size[1], device=self.device)
        for number, top in enumerate(self._tops):
            first, last = max(start, top), min(stop, top + self._side[0])
            if top + self._side[0] <= start:
                self._open.pop(number, None)
            elif first < last:
                if number not in self._open:
                    self._open[number] = list(self._run(top))
                part = slice(first - top, last - top)
                weight = self._row_weights[number, part, None, None]
                for window in self._open[number]:
                    _add(window, part, weight, result[first - start : last - start])
        return result

    def _run(self, top: int) -> Iterator[_Window]:
        """The windows that begin at one row."""
        height, width = self._side
        pixels = _BATCH_PIXELS.get(self.device.type, _BATCH_PIXELS["cuda"])
        step = max(1, pixels // (height * width))
        strip = self._logits.image[:, top : top + height]
        for begin in range(0, len(self._lefts), step):
            lefts = self._lefts[begin : begin + step]
            weights = self._column_weights[begin : begin + step]
            logits = self._logits.run([strip[:, :, left : left + width] for left in lefts])
            for left, weight, said in zip(lefts, weights, logits, strict=True):
                yield _Window(left, weight, class_probability(said.mask_cls), said.image_masks)


def _add(window: _Window, rows: slice, weight: Tensor, scores: Tensor) -> None:
    """Add a window's share of some of its rows to R×K×W ``scores``."""
    band = window.masks.rows(rows.start, rows.stop).sigmoid().mul_(weight * window.weight)
    columns = slice(window.left, window.left + band.shape[2])
    scores[:, :, columns] += window.probability @ band
