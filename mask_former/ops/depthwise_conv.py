"""Depthwise convolutions whose gradients are fast in mixed precision on a CPU.

Reference: ``F.conv2d`` with a group for each channel. Fast: :func:`depthwise_conv2d`, the same
forward pass with gradients in fp32, because oneDNN takes several times as long for them in
bfloat16, above all with 5×5 kernels and strides.

Saves: a sixth of a training step of the CamVid model in bfloat16 on a CPU (docs/performance.md,
"Depthwise convolutions").
"""

# Example: x of 8×672×18×24 and a 5×5 kernel, in bfloat16. The gradient of the weight takes 93 ms.
# Computed in fp32, with casts before and after, it takes 20 ms and is more accurate. The forward
# pass stays in bfloat16: it takes 1.1 ms, in fp32 2.2 ms.

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
    """Convolve each channel with its own kernel, as ``F.conv2d`` does, with gradients in fp32.

    Args:
        x: B×C×H×W.
        weight: C×1×h×w, of the type of ``x``.
        bias: C, or None.
        stride, padding, dilation: vertical and horizontal, in pixels.

    Returns:
        B×C×H'×W', of the type of ``x``.
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
        grads_fp32 = torch.ops.aten.convolution_backward(
            *(grads[0].float(), x.float(), weight.float(), ctx.bias_sizes, *ctx.window),
            *(False, (0, 0), x.shape[1], ctx.needs_input_grad[:3]),
        )
        needed = [None if grad is None else grad.to(x.dtype) for grad in grads_fp32]
        return (*needed, None, None, None)
