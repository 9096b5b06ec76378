"""What training says while it runs."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from detectron2.utils.events import CommonMetricPrinter

__all__ = ["CpuMetricPrinter", "mend_metrics_file"]


class _WithMemory(logging.LoggerAdapter):
    """Adds the process's peak memory to a line."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, Any]:
        return f"{msg}  max_mem: {_peak_megabytes():.0f}M", kwargs


class CpuMetricPrinter(CommonMetricPrinter):
    """detectron2's line of losses, speed and ETA, which knows only a GPU's memory."""

    def __init__(self, max_iter: int | None = None) -> None:
        super().__init__(max_iter)
        self.logger = _WithMemory(logging.getLogger("detectron2.utils.events"), {})


def _peak_megabytes() -> float:
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def mend_metrics_file(path: Path) -> None:
    """Cut off a last line that a killed run left unfinished, so that each line is JSON again.

    It is done in place, for a writer may have the file open, and never shortens it by a whole line.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    try:
        json.loads(content[whole:])
    except ValueError:
        if content[whole:]:
            os.truncate(path, whole)
    else:
        with path.open("ab") as file:
            file.write(b"\n")
