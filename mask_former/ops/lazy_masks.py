"""Full-size masks, computed one band of rows at a time.

Reference: :class:`WholeMasks`, ``F.interpolate``, crop and sigmoid on whole tensors. Fast:
:class:`LazyMasks`, which records the steps and computes only the rows that are read. Bilinear
resizing is a linear map along each axis, so rows are computed by the product of the matrices of all
steps, which is one matrix; columns are resized step by step, but only in the few source rows.
:func:`as_masks` chooses between them.

Saves: the memory of Q×H×W and the time to write and read it. With 100 queries, panoptic inference
takes a fifth of the time, semantic inference 0.6 (docs/performance.md, "Inference").
"""

# Example: 2 rows of logits resized to 4, cropped to 3, resized to 6. Each step is a matrix:
#     2 → 4: [[1, 0], [.75, .25], [.25, .75], [0, 1]]   crop: its first 3 rows   3 → 6: a 6×3 one
# Their product is one 6×2 matrix. Rows 0 … 2 of the output are its first 3 rows times the source
# rows whose weights are not all 0; the intermediate maps of 4 and 3 rows are never computed.

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
"""Along one axis: the length to resize to, and the length to keep (the remainder is cropped)."""
Band = tuple[slice, Tensor]
"""R rows of N maps: the slice of their indices, and their values R×N×W."""

_BAND_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 27}
"""Maximum elements of a band. On a CPU, the few tensors of a band have to fit the cache."""

_LARGEST = 1e30
"""Replacement for infinite logits, because ∞ times an interpolation weight of 0 would be nan."""


def as_masks(masks: Tensor | LazyMasks | WholeMasks) -> LazyMasks | WholeMasks:
    """Wrap Q×h×w mask logits, if needed, in the class that :func:`is_reference` selects."""
    if not isinstance(masks, Tensor):
        return masks
    return WholeMasks(masks) if is_reference() else LazyMasks(masks)


def resize_axis(x: Tensor, steps: Sequence[Step]) -> Tensor:
    """Resize (linear, ``align_corners=False``) and crop the last axis of N×C×L, step by step."""
    for length, kept in steps:
        if length != x.shape[-1]:
            x = F.interpolate(x, length, mode="linear", align_corners=False)
        x = x[..., :kept]
    return x


# The reference


class WholeMasks:
    """Q×H×W maps, fp32, as whole tensors; for the methods see :class:`LazyMasks`."""

    def __init__(self, maps: Tensor) -> None:
        """Convert maps, Q×H×W, of any floating-point type."""
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
    """Q×H×W maps, fp32: resizing, crop and sigmoid are recorded, and run when rows are read."""

    def __init__(
        self, source: Tensor | LazyMasks, rows: Sequence[Step] = (), columns: Sequence[Step] = ()
    ) -> None:
        """Record the steps from a source to the maps.

        Args:
            source: Q×h×w logits of any floating-point type and memory layout; or lazy logits, whose
                probabilities are resized.
            rows, columns: steps from h to H and from w to W.
        """
        self.source = source
        self.dtype: torch.dtype = source.dtype  # computed values are fp32
        self.device: torch.device = source.device
        self.requires_grad: bool = source.requires_grad
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
        """Convert logits to probabilities; later steps apply to the probabilities."""
        return LazyMasks(self)

    def __getitem__(self, queries: Tensor) -> LazyMasks:
        """Select some of the masks by indices or Q bools."""
        assert isinstance(self.source, Tensor)
        return LazyMasks(self.source[queries], *self._steps)

    def rows(self, start: int, stop: int) -> Tensor:
        """Compute rows ``start … stop - 1`` of all masks: R×Q×W, fp32, contiguous.

        They may share the memory of the source: do not write into them.
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
        return _multiply(self._row_matrix[start:stop, first:last], resize_axis(read, columns))

    def bands(self, channels: int = 0) -> Iterator[Band]:
        """Compute all rows, in bands that fit the cache.

        Args:
            channels: number of maps that the caller computes from a band, if it may exceed Q.
        """
        limit = _BAND_ELEMENTS.get(self.device.type, _BAND_ELEMENTS["cuda"])
        step = max(1, limit // max(1, max(len(self), channels) * self.size[1]))
        for start in range(0, self.size[0], step):
            stop = min(start + step, self.size[0])
            yield slice(start, stop), self.rows(start, stop)

    def at(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute single pixels, given n row and n column indices: n×Q, fp32."""
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
        """Compute all masks at once: Q×H×W."""
        return self.rows(0, self.size[0]).transpose(0, 1)

    def _read(self, first: int, last: int) -> Tensor:
        """Read rows of the source: R×Q×w, fp32."""
        if isinstance(self.source, LazyMasks):
            return self.source.rows(first, last).sigmoid()
        return self.source[:, first:last].transpose(0, 1).float().contiguous()

    @cached_property
    def _logits_by_cell(self) -> Tensor:
        """The source as hw×Q, fp32: the logits of all masks at one cell are adjacent."""
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
    """Resize maps (bilinear) that arrive in bands, from top to bottom; only a few rows are held.

    Args:
        bands: bands of maps of ``size``, fp32; each row occurs exactly once.
        size: (h, w).
        output_size: (H, W).
        max_rows: maximum number of rows of an output band.
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
            yield slice(done, stop), _multiply(matrix[done:stop, source], wide)
            done = stop
        if done < output_size[0]:
            needed_from = min(first[done], rows.stop)
            held, held_from = held[needed_from - held_from :], needed_from


def _multiply(matrix: Tensor, rows: Tensor) -> Tensor:
    """Multiply R rows, R×N×W, by an S×R matrix: S×N×W."""
    return (matrix @ rows.reshape(rows.shape[0], -1)).view(matrix.shape[0], *rows.shape[1:])


def _axis_matrix(length: int, steps: Sequence[Step], device: torch.device) -> Tensor:
    """Compute the weights of L source cells in each of the L' cells of the resized axis: L'×L."""
    basis = torch.eye(length, device=device)[None]
    return resize_axis(basis, steps)[0].T.contiguous()


def _spans(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first source cell that each row of a resizing matrix uses, and the last plus 1.

    Neither decreases from row to row.
    """
    used = (matrix != 0).int()
    return used.argmax(1), matrix.shape[1] - used.flip(1).argmax(1)


def _taps(matrix: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Find the source cells that rows of a resizing matrix use, and their weights: both n×taps."""
    first, last = _spans(matrix)
    taps = int((last - first).max())
    cells = first.clamp(max=matrix.shape[1] - taps)[index, None]
    cells = cells + torch.arange(taps, device=matrix.device)
    return cells, matrix[index].gather(1, cells)
