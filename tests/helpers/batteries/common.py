"""Inputs and settings that the batteries share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

CLASSES, QUERIES, HIDDEN, MASK_DIM, LAYERS = 5, 7, 16, 12, 3
SHAPES = {f"res{n}": ShapeSpec(channels=4 * n, stride=2**n) for n in (2, 3, 4, 5)}


def small(cfg: CfgNode, options: Mapping[str, Any]) -> CfgNode:
    """Make the model of a config small, then set ``options``, values by full config key."""
    head, node = cfg.MODEL.SEM_SEG_HEAD, cfg.MODEL.MASK_FORMER
    head.NAME, head.NORM, head.IN_FEATURES = "MaskFormerHead", "GN", list(SHAPES)
    head.NUM_CLASSES, head.CONVS_DIM, head.MASK_DIM = CLASSES, 32, MASK_DIM
    node.HIDDEN_DIM, node.NHEADS, node.DIM_FEEDFORWARD = HIDDEN, 2, 24
    node.NUM_OBJECT_QUERIES, node.DEC_LAYERS, node.DROPOUT = QUERIES, LAYERS, 0.0
    for key, value in options.items():
        cfg.merge_from_list([key, value])
    return cfg


def make_features(batch: int = 2, side: int = 64, seed: int = 0) -> dict[str, Tensor]:
    """Return random feature maps by name, as of a backbone for images of ``side``×``side``."""
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(batch, s.channels, side // s.stride, side // s.stride, generator=g)
        for name, s in SHAPES.items()
    }


def without_gradient(module: nn.Module, *inputs: Tensor) -> list[str]:
    """List the names of the parameters, and the indices of the inputs, without a gradient."""
    tensors = {**dict(enumerate(inputs)), **dict(module.named_parameters())}
    return [str(name) for name, value in tensors.items() if value.grad is None]


def run_backward(tensors: list[Tensor]) -> None:
    """Run a backward pass with a random gradient for every element."""
    g = torch.Generator().manual_seed(9)
    total = sum((value * torch.randn(value.shape, generator=g)).sum() for value in tensors)
    assert isinstance(total, Tensor)
    total.backward()
