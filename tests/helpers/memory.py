"""Peak memory of a piece of code, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.paths import ROOT

_MEMORY = """
def memory(key):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) * 1024
"""


def peak_ratio(code: str) -> float:
    """Run Python code that prints a ratio of memory sizes, and return the ratio.

    The code can call ``memory(key)``: the bytes of an entry of Linux's ``/proc/self/status``, such
    as ``VmRSS`` (current) or ``VmHWM`` (peak).
    """
    command = [sys.executable, "-W", "ignore", "-c", _MEMORY + code]
    run = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return float(run.stdout)
