"""Activation checkpointing: recompute a backbone's blocks to save memory (arXiv 1604.06174)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling.backbone.swin import BasicLayer, SwinTransformer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .backbone.swin import SwinStage

__all__ = ["checkpoint_activations", "wants_checkpoints"]

_SERIES = (nn.Sequential, nn.ModuleList, BasicLayer, SwinStage)
"""Containers of consecutive blocks, which are not blocks themselves."""


def wants_checkpoints(cfg: CfgNode, backbone: nn.Module) -> bool:
    """Return True if a config turns activation checkpointing on for this backbone."""
    is_swin = isinstance(backbone, SwinTransformer)
    return cfg.MODEL.ACTIVATION_CHECKPOINTING or (is_swin and cfg.MODEL.SWIN.USE_CHECKPOINT)


def checkpoint_activations(backbone: nn.Module) -> None:
    """Store only each block's input and recompute the block in the backward pass.

    Gradients and the running statistics of norms are the same as without it.

    Raises:
        ValueError: if the backbone has no blocks.
    """
    blocks = list(_blocks(backbone))
    if not blocks:
        raise ValueError(
            f"MODEL.ACTIVATION_CHECKPOINTING is True, but {type(backbone).__name__} has no series "
            "of blocks to recompute: set the key to False."
        )
    for block in blocks:
        block.forward = partial(_run, block, block.forward)


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the residual or transformer blocks of a module, but no single layers."""
    in_series = isinstance(module, (nn.Sequential, nn.ModuleList))
    for child in module.children():
        is_block = in_series and any(True for _ in child.children())
        if is_block and not isinstance(child, _SERIES):
            yield child
        else:
            yield from _blocks(child)


def _run(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*args, **kwargs)
    contexts = partial(_contexts, block)
    return checkpoint(forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return the contexts in which the first and the second forward pass run."""
    return nullcontext(), _frozen_statistics(block)


@contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Keep running statistics fixed, because the second pass sees the same batch again."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, _, count in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if count is None else count.clone()
    try:
        yield
    finally:
        for norm, momentum, count in kept:
            norm.momentum, norm.num_batches_tracked = momentum, count
