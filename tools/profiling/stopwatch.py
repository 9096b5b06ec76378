"""Time of a step's stages, its peak memory, and the machine's speed, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import resource
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from mask_former.utils.timing import interleave, timed

__all__ = ["Peak", "Stopwatch", "matrix_product_rate", "peak_memory"]

MEBIBYTE = 1 << 20


class Stopwatch:
    """Stopwatch that cuts a step into stages; each lap ends one.

    On a GPU it records events and does not synchronise before :meth:`read`. Laps are ignored
    unless it is running.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    @property
    def is_running(self) -> bool:
        """True from :meth:`start` to :meth:`read`."""
        return bool(self._marks)

    def start(self) -> None:
        """Forget earlier laps and start the first one, once the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._marks = [("", self._now())]

    def lap(self, stage: str) -> None:
        """Count the time since the last lap as ``stage``."""
        if self.is_running:
            self._marks.append((stage, self._now()))

    def read(self) -> dict[str, float]:
        """Stop and return the seconds by stage, in order; laps with the same name are added up."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        marks, self._marks = self._marks, []
        seconds: dict[str, float] = {}
        for (_, start), (stage, end) in pairwise(marks):
            seconds[stage] = seconds.get(stage, 0.0) + self._between(start, end)
        return seconds

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start


class Peak(NamedTuple):
    """Peak memory in MiB; None if the system does not report it."""

    step: float | None
    """Memory that a step needs at its peak, in addition to what was in use before it."""
    process: float | None
    """Memory of the process at its peak; on a GPU, the GPU's memory."""


def peak_memory(step: Callable[[], object], device: torch.device) -> Peak:
    """Measure the peak memory of ``step()``; run it once before, for its one-time allocations.

    On a CPU it is the resident memory of the process, as Linux reports it. Other systems cannot
    reset the peak, so only that of the whole process is known.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        most = torch.cuda.max_memory_allocated(device)
        return Peak((most - before) / MEBIBYTE, most / MEBIBYTE)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # return free memory to the system
        Path("/proc/self/clear_refs").write_text("5")  # reset the peak
        before = _resident("VmRSS")
    except OSError:
        step()
        unit = 1 if sys.platform == "darwin" else 1024
        return Peak(None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE)
    step()
    most = _resident("VmHWM")
    return Peak((most - before) / MEBIBYTE, most / MEBIBYTE)


def _resident(key: str) -> int:
    """Return the resident memory in bytes, now ("VmRSS") or at its peak ("VmHWM")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def matrix_product_rate(
    device: torch.device, dtype: torch.dtype, size: int = 2048, rounds: int = 5
) -> float:
    """Measure the median rate of size×size matrix products, in GFLOP/s (two per multiply-add)."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    (seconds,) = interleave([timed(lambda: left @ right, device)], rounds)
    return 2 * size**3 / median(seconds) / 1e9
