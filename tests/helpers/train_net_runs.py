"""Runs of tools/train_net.py on published configs, with smaller models and fewer iterations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.helpers import warm_processes
from tests.helpers.paths import ROOT

SCRIPT = ROOT / "tools" / "train_net.py"
TIMEOUT = 300  # seconds for one process

TINY_SWIN = {
    "MODEL.BACKBONE.NAME": "D2SwinTransformer",
    "MODEL.SWIN.EMBED_DIM": 8,
    "MODEL.SWIN.DEPTHS": [1, 1, 1, 1],
    "MODEL.SWIN.NUM_HEADS": [1, 1, 1, 1],
    "MODEL.SWIN.WINDOW_SIZE": 2,
}
"""Settings of a Swin with one block in each stage."""

SMALL_RUN = {
    "SEED": 1,
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "INPUT.MIN_SIZE_TRAIN": (48, 64),
    "INPUT.MIN_SIZE_TEST": 64,
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 2,
}
SMALL_MODEL = {
    "MODEL.RESNETS.DEPTH": 18,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "MODEL.MASK_FORMER.DEC_LAYERS": 2,
}
"""Settings that make published configs with a ResNet small."""


def config_path(config: str) -> Path:
    """Return the absolute path of a file below configs/."""
    return ROOT / "configs" / config


def pairs(settings: Mapping[str, Any]) -> list[str]:
    """List the words KEY VALUE … of a command line."""
    return [str(word) for pair in settings.items() for word in pair]


def arguments(config: str, output: Path, *options: str, settings: Mapping[str, Any]) -> list[str]:
    """List the words after `python` that run tools/train_net.py on a config below configs/.

    Args:
        options: such as ``--eval-only``.
        settings: config keys and values.
    """
    words = pairs({**settings, "OUTPUT_DIR": output})
    return [str(SCRIPT), "--config-file", str(config_path(config)), *options, *words]


def environment(datasets: Path) -> dict[str, str]:
    """Return the variables of a process with this folder of datasets, and without a GPU."""
    variables = {"DETECTRON2_DATASETS": str(datasets), "CUDA_VISIBLE_DEVICES": ""}
    return {**os.environ, **variables, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def run(words: Sequence[str], *, cwd: Path, environment: Mapping[str, str]) -> str:
    """Run ``python words …``, assert that it succeeds, and return its output."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def run_in_turn(
    runs: Mapping[Path, Sequence[str]], *, cwd: Path, environment: Mapping[str, str]
) -> None:
    """Run the script for each output folder in one process, which saves seconds of imports.

    A run that fails leaves its traceback for `check_done`; the next ones still run.
    """
    process = warm_processes.start(_in_turn, dict(runs), cwd=cwd, environment=environment)
    outcome = process.outcome(TIMEOUT)
    assert outcome.ended_well and outcome.error is None, outcome


def _in_turn(runs: Mapping[Path, Sequence[str]]) -> None:
    for output, words in runs.items():
        try:
            code = warm_processes.script(words)
        except Exception:
            code = traceback.format_exc()
        if code:
            Path(f"{output}.error").write_text(str(code))


def check_done(output: Path) -> None:
    """Assert that the run left no traceback."""
    error = Path(f"{output}.error")
    assert not error.exists(), error.read_text()


def results_of(output: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    """Read the metrics of a run, by dataset, task and name."""
    return json.loads((output / "results.json").read_text())
