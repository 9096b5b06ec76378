"""Freeze parts of a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from .name_patterns import lies_below, matching
from .optimizer import NORMS

__all__ = ["freeze"]

_KEY = "MODEL.FREEZE"


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude the parameters that ``patterns`` match from training.

    Norm layers inside matched modules, and those whose parameters are all frozen, stay in eval
    mode, so that they keep their statistics even after ``model.train()``.

    Args:
        model: Model without a wrapper for distributed training, before its optimizer is built.
        patterns: Patterns of names of parameters or modules; see
            :func:`~mask_former.solver.name_patterns.lies_below`.

    Raises:
        ValueError: If a pattern matches nothing, or nothing is left to train.
    """
    if not patterns:
        return
    parameters = dict(model.named_parameters())
    frozen = {name for pattern in patterns for name in matching(pattern, parameters, _KEY)}
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(
            f"{_KEY} is {list(patterns)}, which leaves nothing to train: remove a pattern."
        )
    norms = _frozen_norms(model, patterns, frozen)
    # Before each forward pass, because detectron2 calls train() on the model after evaluations.
    model.register_forward_pre_hook(lambda *_: _set_eval_mode(norms))
    count = sum(parameters[name].numel() for name in frozen)
    logging.getLogger(__name__).info(
        f"{_KEY}: {count:,} parameters in {len(frozen)} tensors and the statistics of "
        f"{len(norms)} norm layers are frozen."
    )


def _frozen_norms(model: nn.Module, patterns: Sequence[str], frozen: set[str]) -> list[nn.Module]:
    """Find the norm layers inside matched modules, and those with only frozen parameters."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}

    def is_frozen(name: str, norm: nn.Module) -> bool:
        own = [f"{name}.{parameter}" for parameter, _ in norm.named_parameters()]
        is_inside = any(lies_below(name, pattern) for pattern in patterns)
        return is_inside or bool(own and frozen.issuperset(own))

    return [norm for name, norm in norms.items() if is_frozen(name, norm)]


def _set_eval_mode(norms: Sequence[nn.Module]) -> None:
    for norm in norms:
        norm.eval()
