"""The deformable encoder of a feature pyramid (Deformable DETR, arXiv 2010.04159).

Submodules and parameters have the names of Mask2Former's published weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mask_former.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference

from .position_encoding import position_of_cells
from .transformer import FeedForward

__all__ = ["DeformableTransformer", "MSDeformAttn"]


class Pyramid(NamedTuple):
    """The geometry of a feature pyramid: S cells in L levels, coarse to fine, row by row."""

    sizes: list[tuple[int, int]]
    """Height and width of each level, in cells."""
    centres: Tensor
    """S×2: (x, y) of each cell's centre, as fractions of the width and the height of the map."""
    cell_sizes: Tensor
    """L×2: width and height of a cell of each level, as fractions of those of the map."""

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> Pyramid:
        """Measure the maps B×C×h_i×w_i."""
        sizes = [(level.shape[2], level.shape[3]) for level in maps]
        centres = [_cell_centres(*size, like=maps[0]) for size in sizes]
        cell_sizes = torch.stack([2 * of_level[0] for of_level in centres])
        return cls(sizes, torch.cat(centres), cell_sizes)

    def split(self, cells: Tensor) -> list[Tensor]:
        """Cut the cells B×S×C into the maps B×C×h_i×w_i."""
        parts = cells.split([height * width for height, width in self.sizes], 1)
        return [
            part.transpose(1, 2).unflatten(2, size)
            for part, size in zip(parts, self.sizes, strict=True)
        ]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections."""

    def __init__(
        self, dim: int, heads: int, levels: int, points: int, *, reference_ops: bool = False
    ) -> None:
        """Create the projections.

        Args:
            dim: width in channels, a multiple of ``heads``.
            heads: M.
            levels: number of levels that each query samples.
            points: number of points that a head samples in each level.
            reference_ops: sample with ``grid_sample``.
        """
        super().__init__()
        self.points = (heads, levels, points)
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.attend = ms_deform_attn_reference if reference_ops else ms_deform_attn
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Let each head look in one direction, at 1, 2, … cells, with equal weights.

        Projections of values and outputs are Xavier uniform.
        """
        heads, _, points = self.points
        angles = torch.arange(heads) * (2 * math.pi / heads)
        directions = torch.stack([angles.cos(), angles.sin()], -1)  # M×2
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1.0, points + 1)[:, None]  # P×1
        offsets = (directions[:, None, None] * steps).expand(*self.points, 2)
        for linear in self.children():
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.sampling_offsets.weight)
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())

    def forward(self, query: Tensor, value: Tensor, pyramid: Pyramid) -> Tensor:
        """Attend from each cell to a few points around it, in all levels.

        Args:
            query: B×S×C.
            value: B×S×C.
            pyramid: the geometry of the cells.

        Returns:
            B×S×C.
        """
        offsets = self.sampling_offsets(query).unflatten(-1, (*self.points, 2))
        weights = self.attention_weights(query).unflatten(-1, self.points)
        weights = weights.flatten(3).softmax(-1).view_as(weights)
        centres, cell_sizes = pyramid.centres[:, None, None, None], pyramid.cell_sizes[:, None]
        locations = torch.addcmul(centres, offsets, cell_sizes)
        value = self.value_proj(value).unflatten(-1, (self.points[0], -1))
        return self.output_proj(self.attend(value, pyramid.sizes, locations, weights))


class DeformableEncoderLayer(FeedForward):
    """Deformable self-attention and feed-forward over the cells of all levels."""

    def __init__(
        self, attention: MSDeformAttn, dim: int, feedforward_dim: int, dropout: float
    ) -> None:
        super().__init__(dim, feedforward_dim, dropout)
        self.self_attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, pyramid: Pyramid) -> Tensor:
        """Encode ``x`` B×S×C; ``position`` 1×S×C is added to queries, not to values."""
        attended = self.self_attn(x + position, x, pyramid)
        x = self.norm1(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DeformableEncoder(nn.Module):
    """A stack of layers that start with equal biases, as the published one does."""

    def __init__(self, layer: DeformableEncoderLayer, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(num_layers))

    def forward(self, x: Tensor, position: Tensor, pyramid: Pyramid) -> Tensor:
        """Encode ``x`` B×S×C; see :class:`DeformableEncoderLayer`."""
        for layer in self.layers:
            x = layer(x, position, pyramid)
        return x


class DeformableTransformer(nn.Module):
    """The encoder, and an embedding of the level that a cell belongs to."""

    def __init__(
        self,
        *,
        encoder_layers: int,
        dim: int,
        heads: int,
        levels: int,
        points: int,
        feedforward_dim: int,
        dropout: float,
        reference_ops: bool = False,
    ) -> None:
        """Create the layers; ``dropout`` is a probability, see :class:`MSDeformAttn` for others.

        Raises:
            ValueError: if ``dim`` is not a multiple of ``heads``.
        """
        super().__init__()
        if dim % heads:
            raise ValueError(
                f"A deformable encoder of width {dim} cannot be split into {heads} heads; change "
                "MODEL.SEM_SEG_HEAD.CONVS_DIM or MODEL.MASK_FORMER.NHEADS."
            )
        attention = MSDeformAttn(dim, heads, levels, points, reference_ops=reference_ops)
        layer = DeformableEncoderLayer(attention, dim, feedforward_dim, dropout)
        self.encoder = DeformableEncoder(layer, encoder_layers)
        self.level_embed = nn.Parameter(torch.empty(levels, dim))
        for parameter in self.encoder.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        for module in self.encoder.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        nn.init.normal_(self.level_embed)

    def encode(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Encode the maps B×C×h_i×w_i of all levels together. Returns maps of the same shapes."""
        pyramid = Pyramid.of(maps)
        levels = zip(maps, self.level_embed.unbind(), strict=True)
        position = torch.cat([position_of_cells(level) + embed for level, embed in levels], 1)
        cells = torch.cat([level.flatten(2).transpose(1, 2) for level in maps], 1)
        return tuple(pyramid.split(self.encoder(cells, position, pyramid)))


def _cell_centres(height: int, width: int, *, like: Tensor) -> Tensor:
    """Return (x, y) of the centres of all cells, row by row, as fractions of the map: hw×2."""
    x, y = (
        (torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side
        for side in (width, height)
    )
    centres = torch.stack([x.expand(height, width), y[:, None].expand(height, width)], -1)
    return centres.flatten(0, 1)
