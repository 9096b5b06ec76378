"""Depthwise convolutions with torch's values, and gradients computed in fp32."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mask_former.ops.depthwise_conv import depthwise_conv2d


def inputs(dtype, kernel, bias):
    torch.manual_seed(0)
    x = torch.randn(2, 6, 11, 14).to(dtype)
    weight = torch.randn(6, 1, *kernel).to(dtype)
    tensors = [x, weight, torch.randn(6).to(dtype) if bias else None]
    return [t if t is None else t.requires_grad_() for t in tensors]


def gradients(convolve, tensors):
    out = convolve(*tensors)
    torch.manual_seed(1)
    given = [t for t in tensors if t is not None]
    return out, torch.autograd.grad(out, given, torch.randn(out.shape).to(out.dtype))


WINDOWS = [((3, 3), (1, 1), (1, 1), (1, 1)), ((5, 3), (2, 1), (2, 0), (1, 2))]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kernel, stride, padding, dilation", WINDOWS)
def test_values_and_gradients_equal_those_of_conv2d(kernel, stride, padding, dilation, bias):
    tensors = inputs(torch.float64, kernel, bias)
    window = (stride, padding, dilation)
    out, found = gradients(lambda *t: depthwise_conv2d(*t, *window), tensors)
    expected_out, expected = gradients(lambda *t: F.conv2d(*t, *window, groups=6), tensors)
    assert torch.equal(out, expected_out)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # computed in fp32


@pytest.mark.parametrize("kernel, stride, padding, dilation", WINDOWS)
def test_gradients_in_bfloat16_are_the_fp32_gradients_rounded(kernel, stride, padding, dilation):
    tensors = inputs(torch.bfloat16, kernel, bias=True)
    window = (stride, padding, dilation)
    out, found = gradients(lambda *t: depthwise_conv2d(*t, *window), tensors)
    assert out.dtype == torch.bfloat16
    precise = [t.detach().float().requires_grad_() for t in tensors]
    torch.manual_seed(1)
    grad = torch.randn(out.shape).to(torch.bfloat16).float()
    expected = torch.autograd.grad(F.conv2d(*precise, *window, groups=6), precise, grad)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other.to(torch.bfloat16))


def test_inputs_that_need_no_gradient_are_supported():
    x, weight, _ = inputs(torch.bfloat16, (3, 3), bias=False)
    out = depthwise_conv2d(x.detach(), weight, None, (1, 1), (1, 1), (1, 1))
    (grad,) = torch.autograd.grad(out.sum(), [weight])
    assert grad.shape == weight.shape


class BackwardTypes(TorchDispatchMode):
    """A dispatch mode that records the dtypes of the inputs of convolutions' backward passes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution_backward.default:
            self.seen.append([t.dtype for t in args[:3]])
        return func(*args, **(kwargs or {}))


def test_gradients_in_bfloat16_are_computed_in_fp32():
    tensors = inputs(torch.bfloat16, (3, 3), bias=True)
    with BackwardTypes() as types:
        gradients(lambda *t: depthwise_conv2d(*t, (1, 1), (1, 1), (1, 1)), tensors)
    assert types.seen == [[torch.float32] * 3]
