"""Split independent work across processes (torchrun) that synchronise only at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ["Ranks"]

PATIENCE = timedelta(days=1)
"""Longest time that a process waits at the end for the others."""
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Position of this process among all; see :meth:`from_environment`."""

    rank: int = 0
    count: int = 1
    device: str | None = None
    """GPU of this process if several processes share a machine with GPUs; else None."""

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> Ranks:
        """Read ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK``, which ``torchrun`` and others set.

        Raises:
            ValueError: If ``RANK`` is not in 0 … ``WORLD_SIZE`` - 1.
        """
        rank, count = int(variables.get("RANK", 0)), int(variables.get("WORLD_SIZE", 1))
        if not 0 <= rank < count:
            raise ValueError(f"RANK is {rank}, WORLD_SIZE {count}: expected 0 ≤ RANK < WORLD_SIZE.")
        gpus = torch.cuda.device_count()
        local = int(variables.get("LOCAL_RANK", 0)) % max(1, gpus)
        return cls(rank, count, f"cuda:{local}" if gpus and count > 1 else None)

    def share(self, items: Sequence[T]) -> list[T]:
        """Return every ``count``-th item, so that each item belongs to one process."""
        return list(items[self.rank :: self.count])

    @contextmanager
    def connected(self) -> Iterator[None]:
        """Connect the processes with gloo, for :meth:`finish`.

        Raises:
            ValueError: If ``MASTER_ADDR`` or ``MASTER_PORT`` is not set.
        """
        if self.count == 1:
            yield
            return
        for name in ("MASTER_ADDR", "MASTER_PORT"):
            if name not in os.environ:
                raise ValueError(
                    f"WORLD_SIZE is {self.count}, but {name} is not set: use torchrun."
                )
        dist.init_process_group("gloo", timeout=PATIENCE)
        try:
            yield
        finally:
            dist.destroy_process_group()

    def finish(self, counts: Sequence[int], last: Callable[[], object]) -> list[int] | None:
        """Wait for all processes, then call ``last`` once.

        No process returns before ``last`` has returned, because ``torchrun`` ends all processes
        when one ends with an error.

        Args:
            counts: Counts of this process.
            last: Function that the first process calls; if a process was lost, all others call it.

        Returns:
            The sums of the counts over all processes; None if a process was lost.
        """
        if self.count == 1:
            last()
            return list(counts)
        gathered: list[Sequence[int]] = [()] * self.count
        try:
            dist.all_gather_object(gathered, list(counts))
            if self.rank == 0:
                last()
            dist.barrier()
        except RuntimeError as error:
            logging.getLogger(__name__).error(f"another process was lost: {error}")
            last()
            return None
        return [sum(column) for column in zip(*gathered, strict=True)]
