"""The cross-attention of a transformer decoder: where each query looks in the image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["attention_recorder", "attention_weights", "cross_attentions"]


@contextmanager
def attention_recorder(predictor: Any) -> Iterator[list[Tensor]]:
    """Append the cross-attention of each decoder layer to the yielded list, while in the context.

    The layers run attention as one fused call, which does not return the weights, so they are
    computed again from its inputs: B×Q×h×w, averaged over the heads; each map adds up to 1.
    """
    found: list[Tensor] = []
    grids: list[tuple[int, int]] = []

    def record(module: Any, inputs: tuple[Tensor, ...]) -> None:
        query, key, _, *attended = inputs
        weights = attention_weights(module, query, key, *attended).mean(1)
        # layers of Mask2Former attend to one map after another
        found.append(weights.unflatten(-1, grids[len(found) % len(grids)]))

    def measure(module: Any, inputs: Any, projected: Tensor) -> None:
        grids.append((projected.shape[-2], projected.shape[-1]))

    projections = predictor.input_proj
    projections = projections if isinstance(projections, nn.ModuleList) else [projections]
    handles = [one.register_forward_hook(measure) for one in projections]
    handles += [one.register_forward_pre_hook(record) for one in cross_attentions(predictor)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def cross_attentions(predictor: nn.Module | None) -> list[nn.Module]:
    """Return the modules by which queries attend to the image, one of each decoder layer."""
    modules = predictor.named_modules() if predictor is not None else ()
    return [module for name, module in modules if name.endswith("multihead_attn")]


def attention_weights(
    attention: nn.MultiheadAttention, query: Tensor, key: Tensor, attended: Tensor | None = None
) -> Tensor:
    """Compute softmax(q·k / √d) of each head from queries B×Q×C and keys B×S×C: B×heads×Q×S.

    ``attended`` B×1×Q×S is False where a query does not see a key; see
    :class:`~mask_former.layers.Attention`.
    """
    weight, bias = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    q, k = (
        F.linear(x, weight[i], bias[i]).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for i, x in enumerate((query, key))
    )
    logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if attended is not None:
        logits = logits.masked_fill(~attended, -torch.inf)
    return logits.softmax(-1)
