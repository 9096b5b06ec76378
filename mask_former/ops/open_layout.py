"""Cut maps of tokens into shifted windows inside a graph with dynamic sizes (``torch.export``).

Reference: :class:`.window_layout.PlainLayout`. :class:`OpenLayout` does the same with tables of
indices, which are computed inside the graph.

Saves nothing: it is the form that can be exported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .symbolic_sizes import plain_size
from .window_layout import MASKED, side_of_map

__all__ = ["OpenLayout", "open_layout"]


@dataclass(frozen=True)
class OpenLayout:
    """Tables of whole tokens, with windows in the order of the map; used like :class:`PlainLayout`.

    With dynamic sizes, maps cannot be cut by ``view``, because the exporter would have to prove
    that the sizes are divisible. Indexing needs no proof.
    """

    size: int
    rows: Tensor
    """B·nW·N: the token (of B·H·W) that each slot reads; padding slots read any token."""
    padding: Tensor
    """B·nW·N, bool: True for padding slots."""
    back: Tensor
    """B·H·W: the slot of each token."""
    mask: Tensor | None
    """(B·nW)×1×N×N: 0 or -100, added to attention logits; None without a shift."""

    def cut(self, x: Tensor) -> Tensor:
        """Cut B×HW×C into (B·nW)×N×C."""
        windows = x.reshape(-1, x.shape[-1]).index_select(0, self.rows)
        windows = windows.masked_fill(self.padding[:, None], 0)
        return windows.view(-1, self.size * self.size, x.shape[-1])

    def join(self, windows: Tensor) -> Tensor:
        """Join (B·nW)×N×C to (B·HW)×C."""
        return windows.reshape(-1, windows.shape[-1]).index_select(0, self.back)


def open_layout(
    batch: int, height: int, width: int, size: int, shift: int, device: torch.device
) -> OpenLayout:
    """Compute the tables by arithmetic that never needs the value of a size or its factors.

    Sizes may be symbols (``torch.export``) or tensors (``torch.jit.trace``).
    """
    tall, wide = (plain_size((side + size - 1) // size) for side in (height, width))
    number = torch.arange(batch * tall * wide * size * size, device=device)
    window, slot = _divide(number, size * size)
    image, window = _divide(window, tall * wide)
    (row, column), (y, x) = _divide(window, wide), _divide(slot, size)
    y, x = row * size + y, column * size + x
    mask = None
    if shift:
        sides = (side_of_map(at, n * size, size, shift) for at, n in ((y, tall), (x, wide)))
        region = torch.stack(tuple(sides)).view(2, -1, size * size)
        apart = (region[..., None] != region[..., None, :]).any(0)
        mask = torch.zeros_like(apart, dtype=torch.float32).masked_fill(apart, MASKED)[:, None]
        y, x = _divide(y + shift, tall * size)[1], _divide(x + shift, wide * size)[1]
    padding = (y >= height) | (x >= width)
    rows = ((image * height + y) * width + x).masked_fill(padding, 0)

    number = torch.arange(batch * height * width, device=device)
    image, token = _divide(number, height * width)
    y, x = _divide(token, width)
    if shift:
        y = _divide(y + (tall * size - shift), tall * size)[1]
        x = _divide(x + (wide * size - shift), wide * size)[1]
    (row, y), (column, x) = _divide(y, size), _divide(x, size)
    back = (((image * tall + row) * wide + column) * size + y) * size + x
    return OpenLayout(size, rows, padding, back, mask)


def _divide(x: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Compute quotient and remainder, because ONNX has no ``%`` by a dynamic number."""
    quotient = x // by
    return quotient, x - quotient * by
