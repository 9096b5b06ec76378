"""Peak memory of a piece of code, measured in a process of its own."""

from __future__ import annotations

import os
from pathlib import Path

from tests.helpers import warm_processes
from tests.helpers.paths import ROOT


def peak_ratio(code: str) -> float:
    """Run Python code that sets ``ratio``, a ratio of memory sizes, and return it.

    The code can call :func:`memory`.
    """
    process = warm_processes.start(_ratio, code, cwd=ROOT, environment=os.environ)
    outcome = process.outcome(timeout=300)
    assert outcome.error is None and outcome.ended_well, outcome.trace
    return float(outcome.value)


def _ratio(code: str) -> float:
    names = {"memory": memory}
    exec(code, names)
    return names["ratio"]


def memory(key: str) -> int:
    """Return the bytes of an entry of ``/proc/self/status``: ``VmRSS`` (now), ``VmHWM`` (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)[key].split()[0]) * 1024
