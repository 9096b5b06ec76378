"""Large images in overlapping windows: the network sees one window at a time (semantic only)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mask_former.ops import LazyMasks, WholeMasks, is_reference
from mask_former.ops.lazy_masks import resize_bands
from mask_former.structures import Size

from .logits import ImageLogits
from .semantic import class_probability

__all__ = [
    "SlidingWindow",
    "blend_weights",
    "even_windows",
    "sliding_window_scores",
    "window_starts",
]

_GRANULE = 32
"""The default stride is a multiple of this number of pixels."""

_BAND_ROWS = 16
"""Number of rows to blend at once: with 100 queries, these rows of a window fit a CPU's cache."""

_BATCH_PIXELS = {"cpu": 1 << 18, "cuda": 1 << 21}
"""Maximum number of pixels in a batch of windows; a batch has at least one window."""

Run = Callable[[list[Tensor]], Sequence[ImageLogits]]
"""The network: maps parts of an image, 3×h×w, all of one size, to their logits."""
Band = tuple[slice, Tensor]
"""R rows: the slice of their indices, and their class scores, R×K×W."""


@dataclass(frozen=True)
class SlidingWindow:
    """The window of ``TEST.SLIDING_WINDOW``, and its stride."""

    size: int
    """Side of the window, in pixels of the network's input."""
    stride: int = 0
    """Pixels from one window to the next; 0: 2/3 of ``size``, rounded to a multiple of 32."""
    even: bool = False
    """Take the mean of as few windows as possible, evenly spaced; there is no stride."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.SIZE is {self.size}, expected 1 or more pixels (0: no "
                "windows)."
            )
        if self.even and self.stride:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.STRIDE is {self.stride}, but TEST.SLIDING_WINDOW.MODE 'even' "
                "spaces the windows evenly: set STRIDE to 0, or MODE to ''."
            )
        if not 0 <= self.stride <= self.size:
            raise ValueError(
                f"TEST.SLIDING_WINDOW.STRIDE is {self.stride}, expected 1 … {self.size} pixels, "
                "the TEST.SLIDING_WINDOW.SIZE, so that windows leave no gaps (0: 2/3 of it)."
            )

    @classmethod
    def of(
        cls, size: int, stride: int, mode: str = "", *, panoptic_on: bool, instance_on: bool
    ) -> SlidingWindow | None:
        """Create the window of a config; None if it is off.

        Raises:
            ValueError: if a number is out of range, or if panoptic or instance results, which
                windows cannot give, are on; the message names the keys.
        """
        if mode not in ("", "even"):
            raise ValueError(f"TEST.SLIDING_WINDOW.MODE is {mode!r}, expected '' or 'even'.")
        if not size:
            if stride:
                raise ValueError(
                    f"TEST.SLIDING_WINDOW.STRIDE is {stride}, but TEST.SLIDING_WINDOW.SIZE is 0, "
                    "which means no windows: set SIZE to the side of a window, or STRIDE to 0."
                )
            return None
        on = {"PANOPTIC_ON": panoptic_on, "INSTANCE_ON": instance_on}
        for key in (key for key, is_on in on.items() if is_on):
            raise ValueError(
                f"TEST.SLIDING_WINDOW.SIZE is {size} and MODEL.MASK_FORMER.TEST.{key} is True, but "
                "windows give a semantic result only, because parts of an object in two windows "
                f"are not merged. Set MODEL.MASK_FORMER.TEST.{key} to False, or SIZE to 0."
            )
        return cls(size, stride, even=mode == "even")

    def covers(self, image: Sequence[int]) -> bool:
        """Return True if an image of this height and width fits into one window."""
        return max(image) <= self.size

    @property
    def step(self) -> int:
        """The stride in pixels; unlike ``stride``, never 0."""
        default = max(round(2 * self.size / 3 / _GRANULE) * _GRANULE, _GRANULE)
        return self.stride or min(default, self.size)

    def starts(self, length: int) -> list[int]:
        """List the starts of the windows along an axis."""
        if self.even:
            return [start for start, _ in even_windows(length, self.size)]
        return window_starts(length, self.size, self.step)

    def weights(self, length: int, device: torch.device) -> Tensor:
        """Compute the weights of each window along an axis: see :func:`blend_weights`."""
        if self.even:
            profile = torch.ones(min(self.size, length), dtype=torch.float64)
            return _normalized(profile, self.starts(length), length).to(device)
        return blend_weights(length, self.size, self.step).to(device)


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """List the starts of windows along an axis; the last window is moved inwards to fit."""
    last = length - size
    return [*range(0, last, stride), last] if last > 0 else [0]


def even_windows(size: Size | int, window: int) -> list[list[int]]:
    """List the fewest windows that cover an image along its longer side, evenly spaced.

    Starts are rounded down, and the last window ends where the image does (published EoMT, whose
    rounding errors may end it one pixel earlier).

    Args:
        size: height and width of the image, or its longer side.
        window: side of a window, in pixels.

    Returns:
        [start, end) of each window.
    """
    length = size if isinstance(size, int) else max(size)
    count = -(-length // window)
    if count < 2:
        return [[0, length]]
    step = window - (count * window - length) / (count - 1)
    starts = [*(int(index * step) for index in range(count - 1)), length - window]
    return [[start, start + window] for start in starts]


def blend_weights(length: int, size: int, stride: int) -> Tensor:
    """Compute the weights of the pixels of each window along an axis: n×min(size, length), fp32.

    They sum to 1 at each pixel, and fall linearly towards the edges of a window, where the network
    sees the least context. A plain mean leaves seams: on CamVid, with windows of 256, scores differ
    across a window's edge five times as much as between other neighbouring pixels; with these
    weights, 1.4 times. Non-linear weights are no better.
    """
    distance = torch.arange(min(size, length), dtype=torch.float64) + 0.5
    tent = torch.minimum(distance, distance.flip(0))
    return _normalized(tent, window_starts(length, size, stride), length)


def _normalized(profile: Tensor, starts: Sequence[int], length: int) -> Tensor:
    """Divide the weights of windows, ``profile`` each, by their sum at each pixel."""
    size = len(profile)
    total = torch.zeros(length, dtype=torch.float64)
    for start in starts:
        total[start : start + size] += profile
    return torch.stack([profile / total[start : start + size] for start in starts]).float()


def sliding_window_scores(
    run: Run, image: Tensor, window: SlidingWindow, *, output_size: Size, device: torch.device
) -> Iterator[Band]:
    """Run the network on each window once, blend the class scores and resize them to the output.

    The logits of a window are dropped after its last row, so that at most two or three rows of
    windows are held.

    Args:
        run: the network.
        image: 3×H×W.
        window: size and stride of the windows.
        output_size: height and width of the scores.
        device: device of the network and the scores.

    Returns:
        Bands of scores ≥ 0, from top to bottom; the caller may overwrite them.
    """
    blend = _blend_reference if is_reference() else _blend
    scores = blend(run, image, window, device)
    return resize_bands(scores, (image.shape[-2], image.shape[-1]), output_size, _BAND_ROWS)


def _blend_reference(
    run: Run, image: Tensor, window: SlidingWindow, device: torch.device
) -> Iterator[Band]:
    """Blend the scores of one window after another. Yields all rows at once."""
    rows, columns = (
        list(zip(window.starts(length), window.weights(length, device), strict=True))
        for length in image.shape[-2:]
    )
    total: Tensor | float = 0.0
    for (top, row_weight), (left, column_weight) in product(rows, columns):
        tall, wide = len(row_weight), len(column_weight)
        (logits,) = run([image[:, top : top + tall, left : left + wide]])
        scores = row_weight[:, None] * column_weight * logits.semantic_scores()
        right, bottom = image.shape[-1] - left - wide, image.shape[-2] - top - tall
        total = total + F.pad(scores, (left, right, top, bottom))
    assert isinstance(total, Tensor)
    yield slice(0, total.shape[1]), total.transpose(0, 1)


# Example: an image of 80 rows, windows of 64 with stride 48, bands of 16 rows. Windows start in
# rows 0 and 16 (the second is moved inwards so that it ends in row 79):
#     rows  0 … 15   the windows that start in row 0 are run; only they cover these rows
#     rows 16 … 63   the windows that start in row 16 are run; both are blended
#     rows 64 … 79   the first windows are dropped; only the second cover these rows


def _blend(run: Run, image: Tensor, window: SlidingWindow, device: torch.device) -> Iterator[Band]:
    """Blend the scores of windows band by band."""
    height, width = image.shape[-2:]
    tall = min(window.size, height)
    starts = list(zip(window.starts(height), window.weights(height, device), strict=True))
    active: list[tuple[int, Tensor, list[_Window]]] = []
    for start in range(0, height, _BAND_ROWS):
        stop = min(start + _BAND_ROWS, height)
        active = [entry for entry in active if entry[0] + tall > start]
        for top, weight in starts:
            if start <= top < stop:
                strip = image[:, top : top + tall]
                active.append((top, weight, list(_run_strip(run, strip, window, device))))
        classes = len(active[0][2][0].probability)
        band = torch.zeros(stop - start, classes, width, device=device)
        for top, weight, windows in active:
            first, last = max(start, top), min(stop, top + tall)
            for one in windows:
                part = slice(first - top, last - top)
                one.add(part, weight[part, None, None], band[first - start : last - start])
        yield slice(start, stop), band


class _Window(NamedTuple):
    """The logits of one window."""

    left: int
    weight: Tensor
    """Weights of its columns."""
    probability: Tensor
    """K×Q, class probabilities."""
    masks: LazyMasks | WholeMasks
    """Q×h×w, mask logits of the window's size."""

    def add(self, rows: slice, weight: Tensor, scores: Tensor) -> None:
        """Add the window's weighted scores in some of its rows to ``scores``, R×K×W."""
        band = self.masks.rows(rows.start, rows.stop).sigmoid().mul_(weight * self.weight)
        scores[:, :, self.left : self.left + band.shape[2]] += self.probability @ band


def _run_strip(
    run: Run, strip: Tensor, window: SlidingWindow, device: torch.device
) -> Iterator[_Window]:
    """Run the windows that start in the same row of the image, in batches."""
    height, width = strip.shape[-2], min(window.size, strip.shape[-1])
    lefts, weights = window.starts(strip.shape[-1]), window.weights(strip.shape[-1], device)
    pixels = _BATCH_PIXELS.get(device.type, _BATCH_PIXELS["cuda"])
    step = max(1, pixels // (height * width))
    for begin in range(0, len(lefts), step):
        batch = lefts[begin : begin + step]
        logits = run([strip[:, :, left : left + width] for left in batch])
        for left, weight, one in zip(batch, weights[begin : begin + step], logits, strict=True):
            yield _Window(left, weight, class_probability(one.mask_cls), one.image_masks)
