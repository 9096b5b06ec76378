"""Time and memory of a step, on a CPU or a GPU."""

from __future__ import annotations

import ctypes
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch

__all__ = ["Peak", "Stopwatch", "lap_after", "matrix_product_rate", "peak_memory", "then"]

MEBIBYTE = 1 << 20


class Stopwatch:
    """Cuts a step into stages: a lap ends one. On a GPU its events are timed, without waiting."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._marks: list[tuple[str, Any]] = []

    def start(self) -> None:
        """Forget the laps so far and start the first, once the device is idle."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._marks = [("", self._now())]

    def lap(self, stage: str) -> None:
        """All since the last lap was ``stage``."""
        self._marks.append((stage, self._now()))

    def read(self) -> dict[str, float]:
        """Seconds by stage, in the order they ended; laps of one name are added up."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds: dict[str, float] = {}
        for (_, start), (stage, end) in zip(self._marks, self._marks[1:], strict=False):
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


@contextmanager
def then(owner: Any, name: str, do: Callable[[Any], None]) -> Iterator[None]:
    """Whenever ``owner.name(…)`` has run, do something with its result."""
    original = getattr(owner, name)
    own = name in vars(owner)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        do(result)
        return result

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, original)
        else:
            delattr(owner, name)


def lap_after(watch: Stopwatch, stage: str, owner: Any, name: str) -> Any:
    """A context in which ``stage`` ends whenever ``owner.name(…)`` has run."""
    return then(owner, name, lambda _: watch.lap(stage))


class Peak(NamedTuple):
    """Memory in MiB; None where the system does not say."""

    step: float | None
    """What a step takes at its peak, beside what was there before it."""
    process: float | None
    """All that the process holds at its peak; on a GPU, of the GPU's memory."""


def peak_memory(step: Callable[[], object], device: torch.device) -> Peak:
    """The memory of ``step()``, which should have run before: what is made once is not counted.

    On a CPU it is the process's resident memory, of which the system is asked (Linux); elsewhere
    its highest mark can be read and not set back, and only the whole process is known.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        most = torch.cuda.max_memory_allocated(device)
        return Peak((most - before) / MEBIBYTE, most / MEBIBYTE)
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # hand back what is free
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = _resident("VmRSS")
    except OSError:
        step()
        unit = 1 if sys.platform == "darwin" else 1024
        return Peak(None, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MEBIBYTE)
    step()
    most = _resident("VmHWM")
    return Peak((most - before) / MEBIBYTE, most / MEBIBYTE)


def _resident(key: str) -> int:
    """Bytes of memory in use now ("VmRSS") or at most ("VmHWM")."""
    for line in Path("/proc/self/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


def matrix_product_rate(
    device: torch.device, dtype: torch.dtype, size: int = 2048, rounds: int = 5
) -> float:
    """GFLOP/s of the product of two size×size matrices, a multiply-add being two: the median."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    watch, seconds = Stopwatch(device), []
    for _ in range(1 + rounds):  # the first does not count
        watch.start()
        left @ right
        watch.lap("product")
        seconds.append(watch.read()["product"])
    return 2 * size**3 / statistics.median(seconds[1:]) / 1e9
