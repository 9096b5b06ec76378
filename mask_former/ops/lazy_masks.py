"""Full-size masks that are computed a band of rows at a time.

Reference: :class:`WholeMasks`, ``F.interpolate``, crop and sigmoid on whole tensors. Fast:
:class:`LazyMasks`, which notes the steps and computes the rows that are asked for. Bilinear
resizing is linear along each axis, so however many steps there are, rows are mixed once, by the
product of the steps' matrices; only the few columns' steps run one after the other, on source rows.
:func:`as_masks` chooses between them.

Saves: Q×H×W, which is never held, and the time to write and read it: panoptic inference with 100
queries takes a fifth of the time, semantic inference 0.6 (docs/performance.md, "Inference").
"""

# Example: 2 rows of logits resized to 4, cropped to 3, resized to 6. Each step is a matrix:
#     2 → 4: [[1, 0], [.75, .25], [.25, .75], [0, 1]]   crop: its first 3 rows   3 → 6: a 6×3 one
# Their product is one 6×2 matrix. Rows 0 … 2 of the result read its first 3 rows times the source
# rows whose weights are not all 0: nothing of 4 or 3 rows is ever computed.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import is_reference

__all__ = ["LazyMasks", "WholeMasks", "as_masks", "resize_axis", "resize_bands"]

Size = tuple[int, int]
Step = tuple[int, int]
"""Along one axis: the length to resize to, and the length that is kept (the rest is cropped)."""
Band = tuple[slice, Tensor]
"""Some rows of maps: their numbers, and R×N×W."""

_BAND_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Limit of the elements of a band. On a CPU the few tensors of a band have to fit its cache."""

_LARGEST = 1e30
"""Stands for ±∞ among logits: ∞ times an interpolation weight of 0 would be nan."""


def as_masks(masks: Tensor | LazyMasks | WholeMasks) -> LazyMasks | WholeMasks:
    """Wrap Q×h×w mask logits, unless they are wrapped already; see :func:`is_reference`."""
    if not isinstance(masks, Tensor):
        return masks
    return WholeMasks(masks) if is_reference() else LazyMasks(masks)


def resize_axis(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """Resize (linear, pixel centers at half) and crop the last axis of N×C×L, step by step."""
    for length, kept in steps:
        if length != x.shape[-1]:
            x = F.interpolate(x, length, mode="linear", align_corners=False)
        x = x[..., :kept]
    return x


# The reference


class WholeMasks:
    """Q×H×W maps, fp32, resized and cropped as whole tensors; methods are those of LazyMasks."""

    def __init__(self, maps: Tensor) -> None:
        """
        Args:
            maps: Q×H×W, of any floating-point type.
        """
        self.maps = maps.float()
        self.size: Size = (maps.shape[-2], maps.shape[-1])
        self.dtype, self.device = self.maps.dtype, maps.device
        self.requires_grad = maps.requires_grad

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, queries: Tensor) -> WholeMasks:
        return WholeMasks(self.maps[queries])

    def resize(self, size: Size | None) -> WholeMasks:
        if size is None or tuple(size) == self.size:
            return self
        if not len(self):  # F.interpolate rejects an empty batch
            return WholeMasks(self.maps.new_zeros(0, *size))
        maps = self.maps.clamp(-_LARGEST, _LARGEST)[None]
        return WholeMasks(F.interpolate(maps, size, mode="bilinear", align_corners=False)[0])

    def crop(self, size: Size) -> WholeMasks:
        return WholeMasks(self.maps[:, : size[0], : size[1]])

    def sigmoid(self) -> WholeMasks:
        return WholeMasks(self.maps.sigmoid())

    def rows(self, start: int, stop: int) -> Tensor:
        return self.maps[:, start:stop].transpose(0, 1)

    def bands(self, channels: int = 0) -> Iterator[Band]:
        yield slice(0, self.size[0]), self.rows(0, self.size[0])

    def tensor(self) -> Tensor:
        return self.maps


# The fast version


class LazyMasks:
    """Q×H×W maps, fp32: resized, cropped, put through a sigmoid, but only computed by the row."""

    def __init__(
        self, source: Tensor | LazyMasks, rows: Sequence[Step] = (), columns: Sequence[Step] = ()
    ) -> None:
        """
        Args:
            source: Q×h×w logits of any floating-point type and memory layout; or lazy logits, whose
                probabilities are resized.
            rows, columns: the steps from h to H and from w to W.
        """
        self.source = source
        self._steps = tuple(rows), tuple(columns)
        height, width = self._source_size = (
            tuple(source.shape[-2:]) if isinstance(source, Tensor) else source.size
        )
        self.size: Size = (
            rows[-1][1] if rows else height,
            columns[-1][1] if columns else width,
        )

    def __len__(self) -> int:
        return len(self.source)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the source; whatever is computed is fp32."""
        return self.source.dtype

    @property
    def requires_grad(self) -> bool:
        """True if the source asks for a gradient."""
        return self.source.requires_grad

    @property
    def device(self) -> torch.device:
        """The device of the source and the results."""
        return self.source.device

    def resize(self, size: Size | None) -> LazyMasks:
        """Resize to H×W (bilinear, as ``F.interpolate``); None keeps the size."""
        if size is None or tuple(size) == self.size:
            return self
        rows, columns = self._steps
        steps = ((*axis, (n, n)) for axis, n in zip((rows, columns), size, strict=True))
        return LazyMasks(self.source, *steps)

    def crop(self, size: Size) -> LazyMasks:
        """Keep the first ``size`` rows and columns."""
        kept = min(size[0], self.size[0]), min(size[1], self.size[1])
        if kept == self.size:
            return self
        steps = (
            (*axis[:-1], (axis[-1][0] if axis else have, n))
            for axis, have, n in zip(self._steps, self.size, kept, strict=True)
        )
        return LazyMasks(self.source, *steps)

    def sigmoid(self) -> LazyMasks:
        """Turn logits into probabilities; a later resize is one of the probabilities."""
        return LazyMasks(self)

    def __getitem__(self, queries: Tensor) -> LazyMasks:
        """Select some of the masks by indices or Q bools."""
        assert isinstance(self.source, Tensor)
        return LazyMasks(self.source[queries], *self._steps)

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute rows ``start … stop-1`` of all masks: R×Q×W, fp32, contiguous.

        It may share the memory of the source: do not write into it.
        """
        rows, columns = self._steps
        if not len(self):
            return torch.zeros(stop - start, 0, self.size[1], device=self.device)
        if not rows and not columns:
            return self._read(start, stop)
        first, last = self._spans[0][start], self._spans[1][stop - 1]
        read = self._read(first, last)
        if isinstance(self.source, Tensor):
            read = read.clamp(-_LARGEST, _LARGEST)
        return _mix(self._row_matrix[start:stop, first:last], resize_axis(read, columns))

    def bands(self, channels: int = 0) -> Iterator[Band]:
        """Compute all rows, a cache-sized band at a time.

        Args:
            channels: number of maps that the caller computes from Q, if it may be more.
        """
        limit = _BAND_ELEMENTS.get(self.device.type, _BAND_ELEMENTS["cuda"])
        step = max(1, limit // max(1, max(len(self), channels) * self.size[1]))
        for start in range(0, self.size[0], step):
            stop = min(start + step, self.size[0])
            yield slice(start, stop), self.rows(start, stop)

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute single pixels, n row and n column indices: n×Q, fp32."""
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
        """Compute all of them at once: Q×H×W."""
        return self.rows(0, self.size[0]).transpose(0, 1)

    def _read(self, first: int, last: int) -> Tensor:
        """Read rows of the source: R×Q×w, fp32."""
        if isinstance(self.source, LazyMasks):
            return self.source.rows(first, last).sigmoid()
        return self.source[:, first:last].transpose(0, 1).float().contiguous()

    @cached_property
    def _logits_by_cell(self) -> Tensor:
        """hw×Q, fp32, so that the logits of all masks at one cell are adjacent."""
        assert isinstance(self.source, Tensor)
        cells = self.source.flatten(1).T.float().contiguous()
        return cells.clamp(-_LARGEST, _LARGEST)

    @cached_property
    def _row_matrix(self) -> Tensor:
        return _axis_matrix(self._source_size[0], self._steps[0], self.device)

    @cached_property
    def _column_matrix(self) -> Tensor:
        return _axis_matrix(self._source_size[1], self._steps[1], self.device)

    @cached_property
    def _spans(self) -> tuple[list[int], list[int]]:
        first, last = _spans(self._row_matrix)
        return first.tolist(), last.tolist()


def resize_bands(
    bands: Iterable[Band], size: Size, output_size: Size, max_rows: int
) -> Iterator[Band]:
    """Resize maps (bilinear) whose bands come from top to bottom, holding few of their rows.

    Args:
        bands: maps of ``size``, fp32; no row is missing or comes twice.
        size: (h, w).
        output_size: (H, W).
        max_rows: limit of the rows of a band of the result.
    """
    if is_reference():
        whole = WholeMasks(torch.cat([band for _, band in bands]).transpose(0, 1))
        yield from whole.resize(output_size).bands()
        return
    if size == output_size:
        yield from bands
        return
    columns = [(output_size[1], output_size[1])]
    held: Tensor | None = None
    held_from = done = 0
    for rows, band in bands:
        if held is None:
            matrix = _axis_matrix(size[0], [(output_size[0], output_size[0])], band.device)
            first, last = (ends.tolist() for ends in _spans(matrix))
        held = band if held is None else torch.cat([held, band])
        while done < output_size[0] and last[done] <= rows.stop:
            stop = done + 1
            while stop < min(done + max_rows, output_size[0]) and last[stop] <= rows.stop:
                stop += 1
            source = slice(first[done], last[stop - 1])
            wide = resize_axis(held[source.start - held_from : source.stop - held_from], columns)
            yield slice(done, stop), _mix(matrix[done:stop, source], wide)
            done = stop
        if done < output_size[0]:
            needed_from = min(first[done], rows.stop)
            held, held_from = held[needed_from - held_from :], needed_from


def _mix(matrix: Tensor, rows: Tensor) -> Tensor:
    """Mix R rows, R×N×W, by an S×R matrix: S×N×W."""
    return (matrix @ rows.reshape(rows.shape[0], -1)).view(matrix.shape[0], *rows.shape[1:])


def _axis_matrix(length: int, steps: Sequence[Step], device: torch.device) -> Tensor:
    """L'×L: the weights with which each cell of the resized axis mixes those of the source."""
    basis = torch.eye(length, device=device)[None]
    return resize_axis(basis, steps)[0].T.contiguous()


def _spans(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first source cell that each row of a resizing matrix mixes, and the last plus 1.

    Both rise from row to row.
    """
    mixed = (matrix != 0).int()
    return mixed.argmax(1), matrix.shape[1] - mixed.flip(1).argmax(1)


def _taps(matrix: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Find the source cells that rows of a resizing matrix mix, and their weights: both n×taps."""
    first, last = _spans(matrix)
    taps = int((last - first).max())
    cells = first.clamp(max=matrix.shape[1] - taps)[index, None]
    cells = cells + torch.arange(taps, device=matrix.device)
    return cells, matrix[index].gather(1, cells)
