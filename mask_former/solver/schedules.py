"""Learning-rate schedules: detectron2's, and the two-stage warm-up of EoMT."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.projects import deeplab
from torch.optim.lr_scheduler import LambdaLR

__all__ = ["build_lr_scheduler", "eomt_factors"]

_TWO_STAGES = "WarmupTwoStagePolyLR"


def build_lr_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> Any:
    """Build the schedule that ``SOLVER.LR_SCHEDULER_NAME`` names.

    "WarmupTwoStagePolyLR" is EoMT's (see :func:`eomt_factors`); the others are detectron2's.

    Raises:
        ValueError: If ``SOLVER.WARMUP_STEPS`` does not fit "WarmupTwoStagePolyLR".
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME != _TWO_STAGES:
        return deeplab.build_lr_scheduler(cfg, optimizer)

    steps, total = list(cfg.SOLVER.WARMUP_STEPS), cfg.SOLVER.MAX_ITER
    if len(steps) != 2 or sum(steps) >= total:
        raise ValueError(
            f"SOLVER.WARMUP_STEPS is {steps} and SOLVER.MAX_ITER {total}; expected two numbers, "
            "the steps of the warm-up of new layers and of that of the ViT, together less than "
            "MAX_ITER."
        )

    def factor_of(is_vit: bool) -> Any:
        return lambda step: eomt_factors(cfg, step)[0 if is_vit else 1]

    factors = [factor_of(group.get("is_vit", False)) for group in optimizer.param_groups]
    return LambdaLR(optimizer, factors)


def eomt_factors(cfg: CfgNode, step: int) -> tuple[float, float]:
    """Compute the factors on the learning rates of an optimizer step, counted from 0.

    The new layers are warmed up in the first ``SOLVER.WARMUP_STEPS[0]`` steps, in which the ViT
    has a rate of 0; it is warmed up in the following ``WARMUP_STEPS[1]``. Each then falls
    polynomially, to 0 after ``SOLVER.MAX_ITER`` steps (published EoMT).

    Returns:
        The factor of the ViT's parameters, and that of all others.
    """
    first, second = cfg.SOLVER.WARMUP_STEPS
    total, power = cfg.SOLVER.MAX_ITER, cfg.SOLVER.POLY_LR_POWER
    return (
        _factor(step - first, second, total - first, power),
        _factor(step, first, total, power),
    )


def _factor(step: int, warmup: int, total: int, power: float) -> float:
    """Return the factor of a linear warm-up and a polynomial decay."""
    if step < 0:
        return 0.0
    if step < warmup:
        return step / warmup
    return max(1 - (step - warmup) / max(total - warmup, 1), 0.0) ** power
