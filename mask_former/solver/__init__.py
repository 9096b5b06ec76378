"""Optimizers, schedules and frozen parameters."""

from .optimizer import build_optimizer
from .schedules import build_lr_scheduler, eomt_factors

__all__ = ["build_lr_scheduler", "build_optimizer", "eomt_factors"]
