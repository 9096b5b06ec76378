"""A training in two processes of which one dies; ``python -m tests.robustness.ranks``.

Started by itself with ``--num-gpus 2``, or by ``torchrun``, as tools/train_net.py is.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from detectron2.engine import default_argument_parser

import mask_former  # noqa: F401  (registers everything, in spawned processes too)
from mask_former.engine.setup import run
from tests.robustness.trainings import train_in_ranks
from tests.tiny_model import write_tiny_model

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class RankReport:
    """How the job ended."""

    returncode: int
    seconds_after_death: float
    left: list[int]
    """Processes of the job that are still there."""
    output: str


def end_a_rank(folder: Path, end: str, launcher: str, timeout: float = 120) -> RankReport:
    """Train in two processes, let the second one die, and wait for the command's end.

    Args:
        folder: an empty one.
        end: "kill" (SIGKILL) or "raise" (an error).
        launcher: "spawn" (``--num-gpus 2``) or "torchrun".
        timeout: seconds for all of it.

    Raises:
        subprocess.TimeoutExpired: if the job hangs.
    """
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    job = ["tests.robustness.ranks", "--end", end, "--config-file", str(config)]
    if launcher == "torchrun":
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *job]
    else:
        words = ["-m", *job, "--num-gpus", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=timeout,
    )
    now = time.time()
    marks = [folder / f"rank{rank}" for rank in range(2)]
    assert all(mark.exists() for mark in marks), done.stdout[-3000:]
    died = marks[1].stat().st_mtime
    left = [int(mark.read_text()) for mark in marks if _is_running(int(mark.read_text()))]
    return RankReport(done.returncode, now - died, left, done.stdout)


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rsplit(")", 1)[1].split()[0] != "Z"


if __name__ == "__main__":
    parser = default_argument_parser()
    parser.add_argument("--end", choices=["kill", "raise"], required=True)
    arguments = parser.parse_args()
    run(train_in_ranks, arguments)
