"""Multi-scale deformable attention (Deformable DETR, arXiv 2010.04159, equation 3).

Each query samples every level of a pyramid at a few points, bilinearly and with zeros outside the
map, and sums the samples by weight.
Reference: :func:`ms_deform_attn_reference`, by ``grid_sample``. Fast: :func:`ms_deform_attn`, on a
CPU by ``embedding_bag`` (:mod:`.ms_deform_attn_cpu`), on a GPU by Triton
(:mod:`.ms_deform_attn_triton`).

Saves: no sample is stored, where ``grid_sample`` stores L·P for each output channel; the backward
pass keeps only the inputs (docs/performance.md, "Deformable attention").
"""

# Example: one level of 3×4 cells, one point at (0.3, 0.5) of the map with weight 0.8. In cells, the
# point is at x = 0.3·4 - 0.5 = 0.7 and y = 0.5·3 - 0.5 = 1, between columns 0 and 1 and in row 1:
#     output = 0.8·(.3·v[1,0] + .7·v[1,1])
# With x = 3.2, the point is between column 3 and the outside: output = 0.8·(.8·v[1,3] + .2·0).

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import ms_deform_attn_cpu
from .reference import is_reference

__all__ = ["ms_deform_attn", "ms_deform_attn_reference"]

_logger = logging.getLogger(__name__)

Sizes = Sequence[tuple[int, int]]
"""Height and width of each level, in cells."""


class _Kernel(NamedTuple):
    """A fast version: value, sizes, locations and weights to the output, and to the gradients."""

    forward: Callable[[Tensor, Sizes, Tensor, Tensor], Tensor]
    backward: Callable[[Tensor, Sizes, Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def ms_deform_attn(
    value: Tensor, spatial_shapes: Sizes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sum samples of all levels by weight.

    Half-precision inputs are computed in fp32.

    Args:
        value: N×S×M×D, the cells of all levels, row by row and level by level, in M heads.
        spatial_shapes: height and width of each level; S is the number of their cells.
        sampling_locations: N×Q×M×L×P×2, (x, y) of the points as fractions of the map's width and
            height; those outside [0, 1] are outside the map.
        attention_weights: N×Q×M×L×P.

    Returns:
        N×Q×(M·D), one head after another, of the type of ``value``.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    tensors = [t.to(dtype) for t in (value, sampling_locations, attention_weights)]
    kernel = _kernel_for(value)
    if kernel is None:
        found = ms_deform_attn_reference(tensors[0], spatial_shapes, *tensors[1:])
    else:
        sizes = tuple((int(height), int(width)) for height, width in spatial_shapes)
        _check_shapes(sizes, *tensors)
        found = _MSDeformAttn.apply(kernel, sizes, *tensors)
    return found.to(value.dtype)


def ms_deform_attn_reference(
    value: Tensor, spatial_shapes: Sizes, sampling_locations: Tensor, attention_weights: Tensor
) -> Tensor:
    """Sample level by level with ``grid_sample``; see :func:`ms_deform_attn`."""
    heads = value.shape[2]
    maps = value.permute(0, 2, 3, 1).flatten(0, 1)  # (N·M)×D×S
    grid = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)  # (N·M)×Q×L×P×2
    weights = attention_weights.transpose(1, 2).flatten(0, 1)  # (N·M)×Q×L×P
    cells = maps.split([height * width for height, width in spatial_shapes], -1)
    total = torch.zeros((), dtype=value.dtype, device=value.device)
    for level, size in enumerate(spatial_shapes):
        of_level = cells[level].unflatten(-1, tuple(size))
        samples = F.grid_sample(of_level, grid[:, :, level], align_corners=False)
        total = total + torch.einsum("ndqp,nqp->ndq", samples, weights[:, :, level])
    return total.unflatten(0, (-1, heads)).permute(0, 3, 1, 2).flatten(2)


def _check_shapes(sizes: Sizes, value: Tensor, locations: Tensor, weights: Tensor) -> None:
    cells = sum(height * width for height, width in sizes)
    if not sizes or min(min(size) for size in sizes) < 1 or min(locations.shape[2:5]) < 1:
        raise ValueError(
            f"Deformable attention needs levels of at least 1×1 cells, heads, and points, found "
            f"{sizes} and sampling_locations {list(locations.shape)}."
        )
    expected = (value.shape[0], *locations.shape[1:2], *value.shape[2:3], len(sizes))
    if (
        (value.dim(), locations.dim(), value.shape[1]) != (4, 6, cells)
        or weights.shape != (*expected, locations.shape[4])
        or locations.shape != (*weights.shape, 2)
    ):
        raise ValueError(
            f"Deformable attention over levels of {list(sizes)} cells needs value N×{cells}×M×D, "
            f"sampling_locations N×Q×M×{len(sizes)}×P×2 and attention_weights "
            f"N×Q×M×{len(sizes)}×P, found {list(value.shape)}, {list(locations.shape)} and "
            f"{list(weights.shape)}: pass the sizes of the maps in value, in their order."
        )


class _MSDeformAttn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: _Kernel, sizes: Sizes, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        ctx.kernel, ctx.sizes = kernel, sizes
        value, locations, weights = tensors
        return kernel.forward(value, sizes, locations, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        value, locations, weights = ctx.saved_tensors
        return None, None, *ctx.kernel.backward(value, ctx.sizes, locations, weights, grad)


def _kernel_for(value: Tensor) -> _Kernel | None:
    """Return the fast version for a tensor, or None for the reference version."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or is_reference():
        return None  # exporters know grid_sample, and the compiler fuses it
    if value.device.type == "cpu":
        return _Kernel(ms_deform_attn_cpu.forward, ms_deform_attn_cpu.backward)
    # The Triton kernel adds gradients in any order; a fake tensor has no memory to run it on.
    if torch.are_deterministic_algorithms_enabled() or type(value) is not Tensor:
        return None
    return _triton_kernel(value.device) if value.device.type == "cuda" else None


@lru_cache
def _triton_kernel(device: torch.device) -> _Kernel | None:
    """Return the Triton kernel if it is available and gives the reference's values; checked once.

    Triton depends on the GPU, its driver and a C compiler, so any error means the reference.
    """
    if find_spec("triton") is None:
        return None
    try:
        from . import ms_deform_attn_triton as triton_kernel

        kernel = _Kernel(triton_kernel.forward, triton_kernel.backward)
        _compare_with_reference(kernel, device)
    except Exception as error:
        _logger.warning("Deformable attention runs without its Triton kernel: %s", error)
        return None
    return kernel


def _compare_with_reference(kernel: _Kernel, device: torch.device) -> None:
    """Compare values and gradients for a small random input.

    Raises:
        AssertionError: if they differ.
    """
    sizes = ((2, 3), (5, 4))
    shapes = ((2, 26, 2, 5), (2, 33, 2, 2, 2, 2), (2, 33, 2, 2, 2), (2, 33, 10))
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.autocast(device.type, enabled=False):
        value, locations, weights, grad = (
            torch.randn(shape, generator=generator).to(device) for shape in shapes
        )
        found = kernel.forward(value, sizes, locations, weights)
        found_grads = kernel.backward(value, sizes, locations, weights, grad)
        inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
        with torch.enable_grad():
            expected = ms_deform_attn_reference(value, sizes, locations, weights)
            expected_grads = torch.autograd.grad(expected, inputs, grad)
    for one, other in zip((found, *found_grads), (expected, *expected_grads), strict=True):
        torch.testing.assert_close(one, other.detach(), rtol=1e-4, atol=1e-4)
