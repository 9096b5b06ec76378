"""Multi-scale deformable attention: the formula, the fast versions and the choice between them."""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import mask_former.ops
from mask_former.ops import ms_deform_attn as module
from mask_former.ops import ms_deform_attn_cpu, reference_ops
from mask_former.ops.ms_deform_attn import ms_deform_attn, ms_deform_attn_reference
from tests.helpers.golden_cases import load_case
from tests.helpers.paths import ROOT

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

    def attend(value: Tensor, *points: Tensor) -> Tensor:
        return ms_deform_attn(value, SIZES, *points)

    assert torch.autograd.gradcheck(attend, given, fast_mode=True)


def test_the_published_values_and_gradients_are_reproduced() -> None:
    facts, arrays = load_case("mask2former_ms_deform_attn")
    names = ("value", "sampling_locations", "attention_weights")
    given = [torch.from_numpy(arrays[name]).requires_grad_() for name in names]
    output = ms_deform_attn(given[0], facts["spatial_shapes"], *given[1:])
    grads = torch.autograd.grad(output, given, torch.from_numpy(arrays["upstream"]))
    found = dict(
        zip(("output", *(f"grad_{name}" for name in names)), (output, *grads), strict=True)
    )
    for name, value in found.items():
        expected = torch.from_numpy(arrays[name])
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5 * expected.abs().max())


@pytest.mark.parametrize("attend", [ms_deform_attn, ms_deform_attn_reference])
def test_a_location_that_is_nan_makes_only_its_own_outputs_nan(
    attend: Callable[..., Tensor],
) -> None:
    value, locations, weights = (tensor.detach() for tensor in tensors())
    expected = attend(value, SIZES, locations, weights)
    locations[1, 2, 0, 1, 0] = math.nan
    found = attend(value, SIZES, locations, weights)
    expected[1, 2, :WIDTH] = math.nan
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_points_far_outside_the_map_add_nothing_and_have_no_gradients() -> None:
    value, locations, weights = tensors()
    far = torch.where(locations > 0.5, 1e30, -1e30).detach().requires_grad_()
    output, *grads = with_gradients(ms_deform_attn, [value, far, weights])
    assert [tensor.abs().max().item() for tensor in (output, *grads)] == [0, 0, 0, 0]


@pytest.mark.parametrize(("batch", "queries"), [(0, 3), (2, 0)])
def test_no_images_or_no_queries_give_an_empty_output(batch: int, queries: int) -> None:
    value, locations, weights = (tensor[:batch] for tensor in tensors())
    given = (value, SIZES, locations[:, :queries], weights[:, :queries])
    output = ms_deform_attn(*given)
    assert output.shape == (batch, queries, HEADS * WIDTH)
    output.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_fp32(dtype: torch.dtype) -> None:
    halves = [tensor.detach() for tensor in tensors(dtype)]
    found = ms_deform_attn(halves[0], SIZES, *halves[1:])
    precise = [tensor.float() for tensor in halves]
    expected = ms_deform_attn_reference(precise[0], SIZES, *precise[1:])
    assert found.dtype == dtype
    torch.testing.assert_close(found, expected.to(dtype))


def test_the_backward_pass_keeps_only_the_inputs() -> None:
    given, kept = tensors(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ms_deform_attn(given[0], SIZES, *given[1:])
    assert {tensor.data_ptr() for tensor in kept} == {tensor.data_ptr() for tensor in given}


@pytest.mark.parametrize("index", [0, 1, 2])
def test_shapes_that_do_not_fit_together_are_an_error_that_states_them(index: int) -> None:
    given = [tensor.detach() for tensor in tensors()]
    given[index] = given[index][:, :-1] if index == 0 else given[index][:, :, :, :-1]
    with pytest.raises(ValueError, match=rf"levels of .*N×{CELLS}×M×D.*found \[2, "):
        ms_deform_attn(given[0], SIZES, *given[1:])


# The choice of the version


class Operators(TorchDispatchMode):
    """A dispatch mode that records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("sizes", [(), ((0, 0),), ((-3, -4), (3, 4))])
def test_levels_without_cells_are_an_error_that_states_them(
    sizes: tuple[tuple[int, int], ...],
) -> None:
    cells = sum(height * width for height, width in sizes)
    points = torch.rand(1, 5, 2, len(sizes), 3, 2)
    with pytest.raises(ValueError, match=rf"levels of at least 1×1 cells.*{re.escape(str(sizes))}"):
        ms_deform_attn(torch.rand(1, cells, 2, 4), sizes, points, points[..., 0])


def test_the_reference_version_runs_inside_its_context_and_in_traces() -> None:
    given = [tensor.detach() for tensor in tensors(torch.float32)]
    with reference_ops(), Operators() as operators:
        ms_deform_attn(given[0], SIZES, *given[1:])
    assert "aten::grid_sampler_2d" in operators.names
    with Operators() as operators:
        ms_deform_attn(given[0], SIZES, *given[1:])
    assert "aten::grid_sampler_2d" not in operators.names

    def attend(*tensors: Tensor) -> Tensor:
        return ms_deform_attn(tensors[0], SIZES, *tensors[1:])

    trace = torch.jit.trace(attend, tuple(given))
    assert "aten::grid_sampler" in str(trace.graph)
    torch.testing.assert_close(trace(*given), attend(*given))


def test_the_graph_of_torch_export_has_exportable_operators() -> None:
    class Attend(torch.nn.Module):
        def forward(self, value: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
            return ms_deform_attn(value, SIZES, locations, weights)

    given = tuple(tensor.detach() for tensor in tensors(torch.float32))
    graph = torch.export.export(Attend(), given)
    names = {str(node.target) for node in graph.graph.nodes}
    assert any("grid_sampler" in name for name in names)
    torch.testing.assert_close(graph.module()(*given), Attend()(*given))


def test_all_intermediate_results_are_on_the_device_of_the_inputs() -> None:
    with FakeTensorMode(allow_non_fake_inputs=False):
        given = [torch.empty_like(tensor, device="cuda") for tensor in tensors()]
        assert ms_deform_attn(given[0], SIZES, *given[1:]).device.type == "cuda"


# The Triton kernel


# In a process of its own, because Triton reads the variable on import, and torch imports it.
IN_THE_INTERPRETER = """
import torch
from mask_former.ops import ms_deform_attn, ms_deform_attn_triton as kernel
ms_deform_attn._compare_with_reference(
    ms_deform_attn._Kernel(kernel.forward, kernel.backward), torch.device("cpu")
)
"""


@pytest.mark.slow
@pytest.mark.subprocess
def test_the_triton_kernel_has_the_values_and_gradients_of_the_reference() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-c", IN_THE_INTERPRETER]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_a_kernel_with_other_values_or_gradients_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake, device = ModuleType("ms_deform_attn_triton"), torch.device("cpu")
    fake.forward, fake.backward = ms_deform_attn_cpu.forward, ms_deform_attn_cpu.backward
    monkeypatch.setitem(sys.modules, "mask_former.ops.ms_deform_attn_triton", fake)
    monkeypatch.setattr(mask_former.ops, "ms_deform_attn_triton", fake, raising=False)
    monkeypatch.setattr(module, "find_spec", lambda name: True)
    assert module._triton_kernel.__wrapped__(device) is not None
    fake.backward = lambda *given: tuple(
        1.01 * grad for grad in ms_deform_attn_cpu.backward(*given)
    )
    assert module._triton_kernel.__wrapped__(device) is None
    assert "runs without its Triton kernel" in caplog.text


def test_without_triton_the_reference_version_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert module._triton_kernel.__wrapped__(torch.device("cpu")) is None
