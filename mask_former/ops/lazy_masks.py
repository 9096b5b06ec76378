"""Masks at full size that are made a band of rows at a time, so that no full-size copy is held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LazyMasks", "resize_axis"]


Step = tuple[int, int]
"""Along one axis: the length to resize to, and how much of it stays (the rest is cropped)."""

_BAND_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""How many numbers a band may have. On a CPU the few tensors of a band have to fit its cache."""

_LARGEST = 1e30
"""Stands for ±∞ among logits: ∞ times an interpolation weight of 0 would be nan."""


def resize_axis(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """Resize (linear, pixel centres at half) and crop the last axis of N×C×L, step by step."""
    for length, kept in steps:
        if length != x.shape[-1]:
            x = F.interpolate(x, length, mode="linear", align_corners=False)
        x = x[..., :kept]
    return x


class Rows(Protocol):
    """Q×h×w maps that are computed by the row, from top to bottom; their length is Q."""

    size: tuple[int, int]
    device: torch.device
    dtype: torch.dtype
    requires_grad: bool

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start … stop-1`` of all maps: R×Q×w, fp32."""


class LazyMasks:
    """Q×H×W maps, fp32: resized, cropped, put through a sigmoid, but only computed by the row.

    Bilinear resizing is linear along each axis on its own. However many steps of resizing and
    cropping there are, rows are mixed once, by the product of the steps' matrices, and only the
    few columns' steps run one after the other, on rows of the source.
    """

    def __init__(
        self, source: Tensor | Rows, rows: Sequence[Step] = (), columns: Sequence[Step] = ()
    ) -> None:
        """
        Args:
            source: Q×h×w logits of any floating type and memory layout, or what is lazy itself.
            rows, columns: the steps from h to H and from w to W.
        """
        self.source = source
        self._steps = tuple(rows), tuple(columns)
        height, width = self._source_size = (
            tuple(source.shape[-2:]) if isinstance(source, Tensor) else source.size
        )
        self.size: tuple[int, int] = (
            rows[-1][1] if rows else height,
            columns[-1][1] if columns else width,
        )

    @classmethod
    def of(cls, masks: Tensor | LazyMasks) -> LazyMasks:
        """Q×h×w as they are."""
        return masks if isinstance(masks, LazyMasks) else cls(masks)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def dtype(self) -> torch.dtype:
        """The source's: what is computed is fp32."""
        return self.source.dtype

    @property
    def requires_grad(self) -> bool:
        return self.source.requires_grad

    @property
    def device(self) -> torch.device:
        return self.source.device

    def resize(self, size: tuple[int, int] | None) -> LazyMasks:
        """The same at H×W (bilinear, as ``F.interpolate``); as they are where it is None."""
        if size is None or tuple(size) == self.size:
            return self
        rows, columns = self._steps
        steps = ((*axis, (n, n)) for axis, n in zip((rows, columns), size, strict=True))
        return LazyMasks(self.source, *steps)

    def crop(self, size: tuple[int, int]) -> LazyMasks:
        """The first ``size`` rows and columns."""
        kept = min(size[0], self.size[0]), min(size[1], self.size[1])
        if kept == self.size:
            return self
        steps = (
            (*axis[:-1], (axis[-1][0] if axis else have, n))
            for axis, have, n in zip(self._steps, self.size, kept, strict=True)
        )
        return LazyMasks(self.source, *steps)

    def sigmoid(self) -> LazyMasks:
        """Logits to probabilities; what is resized later are the probabilities."""
        return LazyMasks(_Probabilities(self))

    def __getitem__(self, queries: Tensor) -> LazyMasks:
        """Some of the masks: indices, or Q bools."""
        assert isinstance(self.source, Tensor)
        return LazyMasks(self.source[queries], *self._steps)

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start … stop-1`` of all masks: R×Q×W, fp32, contiguous.

        It may share the memory of the source: do not write into it.
        """
        rows, columns = self._steps
        if not len(self):
            return torch.zeros(stop - start, 0, self.size[1], device=self.device)
        if not rows and not columns:
            return self._read(start, stop)
        first, last = self._spans[0][start], self._spans[1][stop - 1]
        if isinstance(self.source, Tensor):
            read = self._read(first, last).clamp(-_LARGEST, _LARGEST)
        else:
            read = self._read(first, last)
        wide = resize_axis(read, columns)
        mixed = self._row_matrix[start:stop, first:last] @ wide.reshape(last - first, -1)
        return mixed.view(stop - start, len(self), self.size[1])

    def bands(
        self, channels: int = 0, *, rows: int | None = None
    ) -> Iterator[tuple[slice, Tensor]]:
        """All rows, a cache-sized band at a time: (which rows, R×Q×W).

        Args:
            channels: how many maps the caller makes of Q, where it may be more.
            rows: R, where another number than fits the cache is wanted.
        """
        limit = _BAND_ELEMENTS.get(self.device.type, _BAND_ELEMENTS["cuda"])
        step = rows or max(1, limit // max(1, max(len(self), channels) * self.size[1]))
        for start in range(0, self.size[0], step):
            stop = min(start + step, self.size[0])
            yield slice(start, stop), self.rows(start, stop)

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """Single pixels, n row and n column indices: n×Q, fp32."""
        assert isinstance(self.source, Tensor)
        (row, row_weight), (column, column_weight) = (
            _taps(matrix, index)
            for matrix, index in ((self._row_matrix, y), (self._column_matrix, x))
        )
        width = self.source.shape[2]
        cell = row[:, :, None] * width + column[:, None, :]  # n×taps×taps
        weight = row_weight[:, :, None] * column_weight[:, None, :]
        logits = self._logits_by_cell[cell.flatten()].view(len(y), -1, len(self))
        return (weight.view(len(y), 1, -1) @ logits)[:, 0]

    def tensor(self) -> Tensor:
        """All of them at once: Q×H×W."""
        return self.rows(0, self.size[0]).transpose(0, 1)

    def _read(self, first: int, last: int) -> Tensor:
        """Rows of the source: R×Q×w, fp32."""
        if not isinstance(self.source, Tensor):
            return self.source.rows(first, last)
        return self.source[:, first:last].transpose(0, 1).float().contiguous()

    @cached_property
    def _logits_by_cell(self) -> Tensor:
        """hw×Q, fp32: all masks at one cell lie side by side."""
        assert isinstance(self.source, Tensor)
        cells = self.source.flatten(1).T.float().contiguous()
        return cells.clamp(-_LARGEST, _LARGEST)

    @cached_property
    def _row_matrix(self) -> Tensor:
        """H×h: what each row is mixed of."""
        return self._axis_matrix(0)

    @cached_property
    def _column_matrix(self) -> Tensor:
        """W×w."""
        return self._axis_matrix(1)

    def _axis_matrix(self, axis: int) -> Tensor:
        basis = torch.eye(self._source_size[axis], device=self.device)[None]
        return resize_axis(basis, self._steps[axis])[0].T.contiguous()

    @cached_property
    def _spans(self) -> tuple[list[int], list[int]]:
        first, last = _spans(self._row_matrix)
        return first.tolist(), last.tolist()


class _Probabilities:
    """The sigmoid of lazy masks."""

    def __init__(self, logits: LazyMasks) -> None:
        self._logits = logits
        self.size, self.device, self.dtype = logits.size, logits.device, logits.dtype
        self.requires_grad = logits.requires_grad

    def __len__(self) -> int:
        return len(self._logits)

    def rows(self, start: int, stop: int) -> Tensor:
        return self._logits.rows(start, stop).sigmoid()


def _spans(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The first source cell that each row of a resizing matrix mixes, and the one after the last.

    Both rise from row to row.
    """
    mixed = (matrix != 0).int()
    return mixed.argmax(1), matrix.shape[1] - mixed.flip(1).argmax(1)


def _taps(matrix: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """The source cells that some rows of a resizing matrix mix, and their weights: both n×taps."""
    first, last = _spans(matrix)
    taps = int((last - first).max())
    cells = first.clamp(max=matrix.shape[1] - taps)[index, None]
    cells = cells + torch.arange(taps, device=matrix.device)
    return cells, matrix[index].gather(1, cells)
