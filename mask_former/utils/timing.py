"""Interleaved timing: A B A B …, so that a drift of the machine's speed affects all steps alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["interleave", "timed"]

T = TypeVar("T")


def interleave(
    steps: Sequence[Callable[[], T]],
    rounds: int,
    *,
    warmup: int = 1,
    after_round: Callable[[], object] | None = None,
) -> list[list[T]]:
    """Call each step once per round, in the given order, and collect the returned values.

    Args:
        steps: The functions to compare; :func:`timed` makes one that returns its seconds.
        rounds: Number of rounds whose values are collected.
        warmup: Number of rounds before them whose values are discarded.
        after_round: Called after every round, for example to update a progress bar.

    Returns:
        The ``rounds`` values of each step.
    """
    values: list[list[T]] = [[] for _ in steps]
    for index in range(warmup + rounds):
        for step, collected in zip(steps, values, strict=True):
            value = step()
            if index >= warmup:
                collected.append(value)
        if after_round is not None:
            after_round()
    return values


def timed(
    step: Callable[[], Any],
    device: torch.device | str = "cpu",
    clock: Callable[[], float] | None = None,
) -> Callable[[], float]:
    """Make a function that runs a step and returns the time that it took, in seconds.

    Args:
        step: The function to time.
        device: The device it runs on; a GPU is synchronised before the clock is read.
        clock: Returns seconds, such as ``time.process_time``. Default: ``time.perf_counter``.
    """
    clock = clock or time.perf_counter

    def now() -> float:
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def run() -> float:
        start = now()
        step()
        return now() - start

    return run
