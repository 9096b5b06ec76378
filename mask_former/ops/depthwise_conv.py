"""Depthwise convolutions whose gradients are fast in mixed precision on a CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise_conv2d"]


def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
) -> Tensor:
    """As `F.conv2d` with a group for each channel, but gradients are computed in fp32.

    In bfloat16 oneDNN takes several times as long for them, most of all with 5×5 kernels and
    strides; forwards bfloat16 is the faster one.

    Args:
        x: B×C×H×W.
        weight: C×1×h×w, of the type of `x`.
        bias: C, or None.
        stride, padding, dilation: (vertical, horizontal).

    Returns:
        B×C×H'×W', of the type of `x`.
    """
    return _DepthwiseConv2d.apply(x, weight, bias, stride, padding, dilation)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, *window: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias_sizes = None if bias is None else list(bias.shape)
        ctx.window = window
        stride, padding, dilation = window
        return F.conv2d(x, weight, bias, stride, padding, dilation, x.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        found = torch.ops.aten.convolution_backward(
            *(grads[0].float(), x.float(), weight.float(), ctx.bias_sizes, *ctx.window),
            *(False, (0, 0), x.shape[1], ctx.needs_input_grad[:3]),
        )
        needed = [None if grad is None else grad.to(x.dtype) for grad in found]
        return (*needed, None, None, None)
