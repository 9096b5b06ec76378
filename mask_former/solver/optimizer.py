"""Optimizers with learning rates and weight decays by parameter, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping
from torch import nn

from .name_patterns import matching

__all__ = ["NORMS", "build_optimizer", "parameter_groups"]

NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.modules.instancenorm._InstanceNorm,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.LocalResponseNorm,
)
_POSITION_BIASES = ("relative_position_bias_table", "absolute_pos_embed")


def _parameters(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, nn.Parameter]]:
    """Yield each trained parameter once: name of its module, own name, module, parameter."""
    seen = set()
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad and parameter not in seen:
                seen.add(parameter)
                yield module_name, name, module, parameter


def parameter_groups(cfg: CfgNode, model: nn.Module) -> list[dict[str, Any]]:
    """Build one group for each trained parameter.

    The learning rate is ``BASE_LR``, times ``BACKBONE_MULTIPLIER`` in the backbone, times
    ``LAYER_DECAY`` for each later block of a plain ViT, times the factors of all patterns of
    ``LR_MULTIPLIERS`` that match the parameter's name. The weight decay
    is ``WEIGHT_DECAY_NORM`` for norm layers, ``WEIGHT_DECAY_EMBED`` for embeddings, 0 for
    position biases, and ``WEIGHT_DECAY`` for all other parameters.

    Raises:
        ValueError: If an entry of ``LR_MULTIPLIERS`` is not a pair of a pattern that matches
            a parameter and a positive number.
    """
    solver = cfg.SOLVER
    names = [name for name, _ in model.named_parameters()]
    multipliers = _multipliers(solver.LR_MULTIPLIERS, names)
    groups = []
    for module_name, name, module, parameter in _parameters(model):
        lr, weight_decay = solver.BASE_LR, solver.WEIGHT_DECAY
        if "backbone" in module_name.split("."):
            lr *= solver.BACKBONE_MULTIPLIER
        group: dict[str, Any] = {}
        above = _blocks_above(model, f"{module_name}.{name}")
        if above is not None:  # of a plain ViT
            group["is_vit"] = True
            if solver.LAYER_DECAY_LAST_BLOCKS or not module_name.startswith("sem_seg_head."):
                lr *= solver.LAYER_DECAY**above
        lr *= multipliers.get(f"{module_name}.{name}" if module_name else name, 1.0)
        if name in _POSITION_BIASES:
            weight_decay = 0.0
        elif isinstance(module, NORMS):
            weight_decay = solver.WEIGHT_DECAY_NORM
        elif isinstance(module, nn.Embedding):
            weight_decay = solver.WEIGHT_DECAY_EMBED
        groups.append(group | {"params": [parameter], "lr": lr, "weight_decay": weight_decay})
    return groups


def _blocks_above(model: nn.Module, parameter: str) -> int | None:
    """Count the blocks of a plain ViT after the one with a parameter; None: it is not of a ViT.

    The modules with the ViT, or with a part of it, have a method ``blocks_above(name)``.
    """
    part, _, name = parameter.partition(".")
    count = getattr(getattr(model, part, None), "blocks_above", None)
    return None if count is None else count(name)


def _multipliers(entries: Sequence[Any], names: Sequence[str]) -> dict[str, float]:
    """Compute the product of the factors of each parameter that a pattern matches."""
    key = "SOLVER.LR_MULTIPLIERS"
    multipliers: dict[str, float] = {}
    for entry in entries:
        is_pair = isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2
        if not is_pair or not isinstance(entry[0], str) or not _is_positive(entry[1]):
            raise ValueError(
                f"{key} has the entry {entry!r}; expected a pattern and a positive number, such as "
                "['*.query_embed', 2.0]. To freeze parameters, use MODEL.FREEZE."
            )
        for name in matching(entry[0], names, key):
            multipliers[name] = multipliers.get(name, 1.0) * entry[1]
    return multipliers


def _is_positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Build AdamW or SGD (``SOLVER.OPTIMIZER``), whose ``step()`` clips the gradient first.

    With ``SOLVER.CLIP_GRADIENTS.CLIP_TYPE`` "full_model" the gradient's norm over all parameters is
    clipped to ``CLIP_VALUE``; ``optimizer.gradient_norm`` is the norm before clipping. The other
    types are detectron2's.

    Raises:
        ValueError: If the optimizer is unknown.
    """
    groups = parameter_groups(cfg, model)
    name, solver = cfg.SOLVER.OPTIMIZER, cfg.SOLVER
    optimizer: torch.optim.Optimizer
    if name == "ADAMW":
        # fused: one pass over the memory of each parameter instead of a dozen.
        optimizer = torch.optim.AdamW(groups, solver.BASE_LR, fused=True)
    elif name == "SGD":
        optimizer = torch.optim.SGD(groups, solver.BASE_LR, momentum=solver.MOMENTUM)
    else:
        raise ValueError(f"SOLVER.OPTIMIZER is {name!r}; it must be 'ADAMW' or 'SGD'.")
    clip = solver.CLIP_GRADIENTS
    if not (clip.ENABLED and clip.CLIP_TYPE == "full_model"):
        return maybe_add_gradient_clipping(cfg, optimizer)
    if clip.CLIP_VALUE > 0:
        parameters = [group["params"][0] for group in groups]
        optimizer.register_step_pre_hook(
            lambda optimizer, *_: _clip(optimizer, parameters, clip.CLIP_VALUE)
        )
    return optimizer


def _clip(optimizer: Any, parameters: list[nn.Parameter], max_norm: float) -> None:
    # A return value of the hook would replace the optimizer's arguments.
    optimizer.gradient_norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
