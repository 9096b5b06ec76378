"""A pytest plugin that rounds as another machine might: ``-p tests.helpers.rounding_noise``.

The last digits of a matrix product depend on the kernel, and the kernel on the processor, the
number of threads, the shapes and the memory layout. The plugin adds noise of that size to what
torch computes in floating point. The noise is a function of the operation, of its inputs' shapes
and strides, and of the index of the element: the same computation gives the same result, as it
does on a real machine, but an image in a batch differs from the same image alone, and a
channels-last map from a contiguous one. A test that fails under it holds on some machines only.

Results that need no rounding stay exact, such as the areas of masks or the rows that a matrix of
zeros and ones selects. In double precision, only whole numbers stay exact.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
SUMS = {
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.baddbmm.default,
    aten.convolution.default,
    aten.convolution_backward.default,
    aten.mkldnn_convolution.default if hasattr(aten, "mkldnn_convolution") else None,
    aten.sum.default,
    aten.sum.dim_IntList,
    aten.mean.default,
    aten.mean.dim,
    aten.upsample_bilinear2d.default,
    aten.upsample_bilinear2d.vec,
    aten.upsample_bilinear2d_backward.default,
}
"""Operations whose rounding error grows with the sum of the magnitudes of their terms."""
FUNCTIONS = {
    aten.grid_sampler_2d.default,
    aten.grid_sampler_2d_backward.default,
    aten.exp.default,
    aten.log.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.gelu.default,
    aten.gelu_backward.default,
    aten.softplus.default,
    aten._softmax.default,
    aten._softmax_backward_data.default,
    aten._log_softmax.default,
    aten._log_softmax_backward_data.default,
    aten.logsumexp.default,
    aten.binary_cross_entropy_with_logits.default,
    aten.native_layer_norm.default,
    aten.native_layer_norm_backward.default,
    aten.native_group_norm.default,
    aten.native_group_norm_backward.default,
    aten.native_batch_norm.default,
    aten.native_batch_norm_backward.default,
    aten._native_batch_norm_legit.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default,
}
"""Operations whose rounding error is about the last digit of their result."""
PRECISE = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
"""The type in which a kernel accumulates results of a shorter type."""


def is_plain(value: Any) -> bool:
    """Return True for an ordinary floating-point tensor, which fake tensors are not."""
    return type(value) in (Tensor, torch.nn.Parameter) and value.is_floating_point()


def signature(func: Any, args: Any) -> int:
    """Return a seed that differs between operations, shapes and memory layouts."""
    layouts = [(tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args]
    return zlib.crc32(repr((str(func), layouts)).encode())


def in_double(func: Any, args: Any, kwargs: Any, prepare: Any = lambda x: x) -> list[Any]:
    """Return the results of an operation on its inputs in double precision.

    Args:
        prepare: function that is applied to copies of the inputs first.
    """

    def convert(value: Any) -> Any:
        if is_plain(value):
            return prepare(value.to(torch.float64, copy=True))
        is_type = isinstance(value, torch.dtype) and value.is_floating_point
        return torch.float64 if is_type else value

    out = func(*map(convert, args), **{name: convert(value) for name, value in kwargs.items()})
    return [out] if isinstance(out, Tensor) else list(out)


def with_noise(out: Tensor, exact: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """Return a result that is off by up to the rounding error of its type times ``size``."""
    precise = PRECISE.get(out.dtype, out.dtype)
    noise = 2 * torch.rand(out.shape, generator=generator, dtype=torch.float64) - 1
    base = out.double() if precise == out.dtype else exact
    noisy = base + noise * size * torch.finfo(precise).eps / 2
    is_rounded = exact != (exact.round() if precise == torch.float64 else exact.to(precise))
    return torch.where(is_rounded & noisy.isfinite(), noisy.to(precise).to(out.dtype), out)


class RoundingNoise(TorchDispatchMode):
    """Adds the noise to the result of each operation that is listed above."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [out] if isinstance(out, Tensor) else out
        if func not in SUMS | FUNCTIONS or not is_plain(results[0]):
            return out
        exact = in_double(func, args, kwargs)
        sizes = in_double(func, args, kwargs, prepare=Tensor.abs) if func in SUMS else exact
        generator = torch.Generator().manual_seed(signature(func, args))
        for result, value, size in zip(results, exact, sizes, strict=True):
            if is_plain(result) and result.numel():
                result.copy_(with_noise(result, value, size.abs(), generator))
        return out


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Run every test, and the fixtures that it makes, with the noise."""
    with RoundingNoise():
        return (yield)
