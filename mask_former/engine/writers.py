"""Writers of the metrics and images of a training run, as ``LOGGERS`` chooses them."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from mask_former.checkpoint.inference_data import plain_settings
from mask_former.utils.bounded_files import check_regular

__all__ = [
    "CpuMetricPrinter",
    "WandbWriter",
    "build_writers",
    "check_loggers",
    "repair_metrics_file",
]

LOGGERS = ("json", "tensorboard", "wandb")


def check_loggers(cfg: CfgNode) -> None:
    """Check that the loggers in ``LOGGERS`` are known and installed.

    Raises:
        ValueError: If one is unknown.
        ImportError: If one is not installed. The message names the command that installs it.
    """
    unknown = [name for name in cfg.LOGGERS if name not in LOGGERS]
    if unknown:
        raise ValueError(f"LOGGERS has {unknown[0]!r}; expected some of {', '.join(LOGGERS)}.")
    if "wandb" in cfg.LOGGERS:
        _wandb()


def build_writers(cfg: CfgNode, max_iter: int) -> list[EventWriter]:
    """Build the writer of progress lines in the log, and those that ``LOGGERS`` names.

    Args:
        cfg: Config with ``LOGGERS``, ``OUTPUT_DIR`` and ``MODEL.DEVICE``.
        max_iter: Number of iterations, from which the remaining time is estimated.

    Raises:
        ImportError, ValueError: See :func:`check_loggers`.
    """
    check_loggers(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    printer = CpuMetricPrinter if cfg.MODEL.DEVICE == "cpu" else CommonMetricPrinter
    writers: list[EventWriter] = [printer(max_iter)]
    if "json" in cfg.LOGGERS:
        metrics = folder / "metrics.json"
        if metrics.exists():
            check_regular(metrics)
        writers.append(JSONWriter(str(metrics)))
    if "wandb" in cfg.LOGGERS:  # before TensorBoard's, which removes the images
        writers.append(WandbWriter(cfg))
    if "tensorboard" in cfg.LOGGERS:
        writers.append(TensorboardXWriter(str(folder)))
    return writers


class WandbWriter(EventWriter):
    """A writer for Weights & Biases, which is configured by its own environment variables."""

    def __init__(self, cfg: CfgNode, window_size: int = 20) -> None:
        """Start a run of Weights & Biases.

        Args:
            cfg: Config, which is stored with the run; the run is named after ``OUTPUT_DIR``.
            window_size: Number of iterations over which losses are smoothed by their median.
        """
        self._wandb = _wandb()
        self._run = self._wandb.init(
            dir=cfg.OUTPUT_DIR,
            name=Path(cfg.OUTPUT_DIR).resolve().name,
            config=plain_settings(cfg),
        )
        self._window_size = window_size
        self._last_write = -1

    def write(self) -> None:
        storage = get_event_storage()
        by_iteration: dict[int, dict[str, Any]] = {}
        scalars = storage.latest_with_smoothing_hint(self._window_size)
        for name, (value, iteration) in scalars.items():
            if iteration > self._last_write:
                by_iteration.setdefault(iteration, {})[name] = value
        for name, pixels, iteration in storage._vis_data:
            if iteration > self._last_write:
                image = self._wandb.Image(pixels.transpose(1, 2, 0))
                by_iteration.setdefault(iteration, {})[name] = image
        for iteration, entries in sorted(by_iteration.items()):
            self._run.log(entries, step=iteration)
            self._last_write = iteration

    def close(self) -> None:
        self._run.finish()


def _wandb() -> Any:
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "LOGGERS has 'wandb', which is not installed: run `pip install wandb`, or remove it."
        ) from error
    return wandb


class _WithMemory(logging.LoggerAdapter):
    """An adapter that adds the peak memory of the process to each line."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, Any]:
        return f"{msg}  max_mem: {_peak_megabytes():.0f}M", kwargs


class CpuMetricPrinter(CommonMetricPrinter):
    """detectron2's printer of losses, speed and ETA, with the peak memory of the process."""

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


def repair_metrics_file(path: Path) -> None:
    """Remove an incomplete last line, which a killed run leaves, so that every line is JSON.

    The file is changed in place, because a writer may have it open. Complete lines are kept.
    """
    if not path.is_file():
        return
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    try:
        json.loads(content[complete:])
    except ValueError:
        if content[complete:]:
            os.truncate(path, complete)
    else:
        with path.open("ab") as file:
            file.write(b"\n")
