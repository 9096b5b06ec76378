"""A pytest plugin that rounds as another machine might: ``-p tests.helpers.rounding_noise``.

The last digits of a matrix product depend on the kernel, and the kernel on the processor, the
number of threads, the shapes and the memory layout. The plugin adds noise of that size to what
torch computes in floating point. The noise is a function of the operation, of its inputs' shapes
and strides, and of the index of the element: the same computation gives the same result, as it
does on a real machine, but an image in a batch differs from the same image alone, and a
channels-last map from a contiguous one. A test that fails under it holds on some machines only.

Exact results stay exact: zeros, and whole numbers such as the areas of masks.
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
    aten.grid_sampler_2d.default,
}
"""Operations whose rounding error grows with the sum of the magnitudes of their terms."""
FUNCTIONS = {
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
    """A seed that differs between operations, shapes and memory layouts."""
    layouts = [(tuple(a.shape), a.stride(), a.dtype) if isinstance(a, Tensor) else a for a in args]
    return zlib.crc32(repr((str(func), layouts)).encode())


def magnitudes(func: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operation on the absolute values of its inputs, in double precision."""
    return func(*(a.double().abs() if is_plain(a) else a for a in args), **kwargs)


def with_noise(out: Tensor, size: Tensor, generator: torch.Generator) -> Tensor:
    """A result, off by up to its type's rounding error times ``size``."""
    precise = out.to(PRECISE.get(out.dtype, out.dtype))
    noise = 2 * torch.rand(out.shape, generator=generator, dtype=torch.float64) - 1
    noisy = precise + noise * size * torch.finfo(precise.dtype).eps / 2
    return torch.where(precise == precise.round(), out, noisy.to(out.dtype))


class RoundingNoise(TorchDispatchMode):
    """Adds the noise to the result of each operation that is listed above."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [out] if isinstance(out, Tensor) else out
        if func not in SUMS | FUNCTIONS or not all(map(is_plain, results[:1])):
            return out
        sizes: Any = results
        if func in SUMS:
            sizes = magnitudes(func, args, kwargs)
            sizes = [sizes] if isinstance(sizes, Tensor) else sizes
        generator = torch.Generator().manual_seed(signature(func, args))
        for result, size in zip(results, sizes, strict=True):
            if is_plain(result) and result.numel():
                result.copy_(with_noise(result, size.abs(), generator))
        return out


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    """Run every test, and the fixtures that it makes, with the noise."""
    with RoundingNoise():
        return (yield)
