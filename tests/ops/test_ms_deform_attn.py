"""Multi-scale deformable attention: the formula, the fast versions and the choice between them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mask_former.ops import ms_deform_attn as module
from mask_former.ops import ms_deform_attn_cpu, reference_ops
from mask_former.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference
from tests.helpers.golden_cases import load_case

SIZES = ((2, 3), (4, 2), (1, 5))
BATCH, QUERIES, HEADS, POINTS, WIDTH = 2, 4, 3, 2, 5
CELLS = sum(height * width for height, width in SIZES)


def tensors(dtype: torch.dtype = torch.float64, spread: float = 0.6) -> list[Tensor]:
    """Return value, locations (some outside the map) and weights, which need gradients."""
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, QUERIES, HEADS, len(SIZES), POINTS)
    given = [
        torch.randn(BATCH, CELLS, HEADS, WIDTH, generator=generator, dtype=torch.float64),
        0.5 + spread * torch.randn(*shape, 2, generator=generator, dtype=torch.float64),
        torch.rand(shape, generator=generator, dtype=torch.float64),
    ]
    return [tensor.to(dtype).requires_grad_() for tensor in given]


def with_gradients(attend: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """Return the output and the gradients of all inputs for a random gradient of the output."""
    output = attend(given[0], SIZES, *given[1:])
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(output.shape, generator=generator, dtype=torch.float64)
    return [output, *torch.autograd.grad(output, given, upstream.to(output.dtype))]


def sample(cells: Tensor, x: float, y: float) -> Tensor:
    """Interpolate h×w×D at column x and row y between cell centres, with zeros outside."""
    total = torch.zeros_like(cells[0, 0])
    for row, column in itertools.product(range(cells.shape[0]), range(cells.shape[1])):
        share = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
        total = total + share * cells[row, column]
    return total


def by_formula(value: Tensor, sizes: Any, locations: Tensor, weights: Tensor) -> Tensor:
    """Sum the samples of each query and head, point by point."""
    output = torch.zeros(*locations.shape[:3], value.shape[3], dtype=value.dtype)
    for at in itertools.product(*map(range, weights.shape)):
        image, query, head, level, _ = at
        height, width = sizes[level]
        start = sum(h * w for h, w in sizes[:level])
        cells = value[image, start : start + height * width, head].view(height, width, -1)
        x, y = (locations[at] * torch.tensor([width, height]) - 0.5).tolist()
        output[image, query, head] += weights[at] * sample(cells, x, y)
    return output.flatten(2)


@pytest.mark.parametrize("attend", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize("spread", [0.2, 0.6, 5.0])
def test_both_versions_follow_the_formula(attend: Callable[..., Tensor], spread: float) -> None:
    given = [tensor.detach() for tensor in tensors(spread=spread)]
    expected = by_formula(given[0], SIZES, *given[1:])
    torch.testing.assert_close(attend(given[0], SIZES, *given[1:]), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("spread", [0.2, 0.6, 5.0])
def test_the_fast_version_has_the_values_and_gradients_of_the_reference(
    dtype: torch.dtype, spread: float
) -> None:
    given = tensors(dtype, spread)
    found = with_gradients(ms_deform_attn, given)
    expected = with_gradients(ms_deform_attn_reference, given)
    assert found[0].grad_fn is not None and "MSDeformAttn" in found[0].grad_fn.name()
    tolerance = 1e-10 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_gradients_are_the_derivatives() -> None:
    given = tensors()
    assert torch.autograd.gradcheck(lambda v, *rest: ms_deform_attn(v, SIZES, *rest), given)
