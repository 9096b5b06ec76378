"""Parts of a model that rest while others are trained."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from torch import nn

from .name_patterns import lies_below, matching
from .optimizer import NORMS

__all__ = ["freeze"]

_KEY = "MODEL.FREEZE"


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Take what ``patterns`` match out of training; its norms keep their statistics.

    The norms inside stay in eval mode while the model trains, whoever calls ``model.train()``.

    Args:
        model: not yet wrapped, and without an optimizer.
        patterns: of names of parameters or modules, see
            :func:`~mask_former.solver.name_patterns.lies_below`.

    Raises:
        ValueError: if a pattern matches nothing, or nothing is left to train.
    """
    if not patterns:
        return
    parameters = dict(model.named_parameters())
    frozen = {name for pattern in patterns for name in matching(pattern, parameters, _KEY)}
    for name in frozen:
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ValueError(f"{_KEY} is {list(patterns)}, which leaves nothing to train.")
    norms = _norms_at_rest(model, patterns, frozen)
    # Before each forward pass, for detectron2's evaluation calls train() on the whole.
    model.register_forward_pre_hook(lambda *_: _rest(norms))
    count = sum(parameters[name].numel() for name in frozen)
    logging.getLogger(__name__).info(
        f"{_KEY}: {count:,} parameters in {len(frozen)} tensors rest, and the statistics of "
        f"{len(norms)} norms with them."
    )


def _norms_at_rest(model: nn.Module, patterns: Sequence[str], frozen: set[str]) -> list[nn.Module]:
    """The norms inside of what is matched, and those all of whose parameters are."""
    norms = {name: module for name, module in model.named_modules() if isinstance(module, NORMS)}

    def rests(name: str, norm: nn.Module) -> bool:
        own = [f"{name}.{parameter}" for parameter, _ in norm.named_parameters()]
        is_inside = any(lies_below(name, pattern) for pattern in patterns)
        return is_inside or bool(own and frozen.issuperset(own))

    return [norm for name, norm in norms.items() if rests(name, norm)]


def _rest(norms: Sequence[nn.Module]) -> None:
    for norm in norms:
        norm.eval()
