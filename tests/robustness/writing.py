"""Writers in danger: planted links, kills and full disks during an export, a second training."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.cli import export
from mask_former.cli.media import VideoWriter
from mask_former.engine import folder_lock
from mask_former.evaluation.build import write_results
from mask_former.results.files import save_image
from mask_former.utils.weight_files import write_weights
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.isolation import Process, isolated
from tests.robustness.malice import plant_links
from tests.robustness.trainings import SameImages, limit_files, tiny_cfg
from tests.robustness.units import Found, Unit

DESCRIPTION = "mask_former.json"
TIMEOUT = 600.0  # seconds
GRAPHS = {"torchscript": ".ts", "torch-export": ".pt2", "onnx": ".onnx"}


def writing_units(seed: int, kills: int) -> list[Unit]:
    """List the units of the soak run."""

    def unit(part: str, name: str, work: Callable[..., tuple[Any, list[str]]], *more: Any) -> Unit:
        return Unit(part, name, lambda folder: _found(*work(folder, *more)))

    full = [unit("export", f"full disk, {name}", export_on_a_full_disk, name) for name in GRAPHS]
    return [
        unit("links", "planted links", write_next_to_links),
        unit("export", f"{kills} kills", kill_exports, kills, seed),
        *full,
        unit("second", "training in the same folder", train_twice_at_once),
    ]


def _found(seen: Any, problems: list[str]) -> Found:
    return Found({"seen": seen}, problems)


def write_next_to_links(folder: Path) -> tuple[int, list[str]]:
    """Write files of all kinds into a folder full of planted links.

    Returns:
        The number of files, and the problems.
    """
    weights = {"a.b": torch.zeros(3)}
    image = np.zeros((64, 64, 3), np.uint8)
    writers: dict[str, Any] = {
        "last_checkpoint": lambda path: Checkpointer(nn.Linear(1, 1), str(folder)).save("model"),
        "x.pth": lambda path: write_weights(weights, path),
        "x.pkl": lambda path: write_weights(weights, path),
        "x.safetensors": lambda path: write_weights(weights, path),
        "results.json": lambda path: write_results(path, {"a": 1.0}),
        "x.png": lambda path: save_image(Image.fromarray(image), path),
        "x.avi": lambda path: _write_video(path, image),
    }
    victim = plant_links(folder, [*writers, "model.pth"])
    problems = []
    for name, write in writers.items():
        write(folder / name)
        if not (folder / name).is_file():
            problems.append(f"{name} was not written")
        if victim.read_text() != "precious":
            problems.append(f"{name} was written through a link")
            victim.write_text("precious")
    return len(writers), problems


def _write_video(path: Path, image: Any) -> None:
    with closing(VideoWriter(path, 5)) as video:
        video.write(image)


# Exports


def export_tiny(config: Path, output: Path, format_name: str, side: int, limit: int = 0) -> int:
    """Export the tiny model with a description that names ``side``; return the exit code.

    Args:
        limit: largest size of a file in bytes; 0 for any.
    """
    if limit:
        limit_files(limit)
    words = ["--config-file", str(config), "--output", str(output), "--format", format_name]
    words += ["--size", "64", "64", "--random-weights", "INPUT.MIN_SIZE_TEST", str(side)]
    return export.main(words)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the contents of a folder's files, except temporary ones."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".part"}


def earlier_export(folder: Path, format_name: str = "torchscript") -> tuple[Path, Path]:
    """Write an export to a folder; return the config and the folder."""
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    outcome = isolated(export_tiny, config, folder / "graphs", format_name, 64, timeout=TIMEOUT)
    assert outcome.value == 0, outcome
    return config, folder / "graphs"


def export_on_a_full_disk(
    folder: Path, format_name: str, limit: int = 30_000
) -> tuple[str, list[str]]:
    """Repeat an export with files of ``limit`` bytes at most.

    Returns:
        The message of the command, and the problems.
    """
    config, output = earlier_export(folder, format_name)
    before, log = contents(output), folder / "log.txt"
    outcome = Process(export_tiny, config, output, format_name, 96, limit, log=log).outcome(TIMEOUT)
    problems = [] if outcome.value == 1 else [f"expected the exit code 1: {outcome}"]
    if contents(output) != before or len(before) != 3:
        problems.append(f"the earlier export changed: {sorted(contents(output))}")
    if list(output.glob(".*.part")):
        problems.append("an unfinished file is left")
    return log.read_text().splitlines()[-1], problems


def kill_exports(folder: Path, kills: int, seed: int) -> tuple[int, list[str]]:
    """Kill exports over an earlier one while they write.

    Returns:
        The number of kills that left an unfinished file, and the problems.
    """
    config, output = earlier_export(folder)
    rng, before, unfinished = random.Random(seed), contents(output), 0
    problems = []
    for number in range(kills):
        process = Process(export_tiny, config, output, "torchscript", 96 + 32 * number)
        while process.is_alive and not list(output.glob(".*.part")):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.5))
        process.kill()
        outcome = process.outcome()
        unfinished += bool(list(output.glob(".*.part")))
        after = contents(output)
        if outcome.signal != signal.SIGKILL:
            before = after  # it was faster
        elif {name: after.get(name) for name in before} != before:
            # A kill between the renames leaves no description rather than a wrong one.
            kept = after.get(DESCRIPTION) == before[DESCRIPTION]
            problems += [f"kill {number}: the export is mixed"] if kept else []
            before = after if DESCRIPTION in after else {**after, DESCRIPTION: b""}
    last = isolated(export_tiny, config, output, "torchscript", 64)
    if last.value != 0 or len(contents(output)) != 3 or list(output.glob(".*.part")):
        problems.append(f"the last export left {sorted(map(str, output.iterdir()))}: {last}")
    return unfinished, problems


# Two trainings


def train_slowly(config: Path, output: Path, iterations: int, resume: bool = True) -> int:
    """Train on the same images; return the number of iterations."""
    cfg = tiny_cfg(config, output, SOLVER__MAX_ITER=iterations, SOLVER__CHECKPOINT_PERIOD=5)
    trainer = SameImages(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer.iter + 1


def train_twice_at_once(folder: Path, iterations: int = 40) -> tuple[str, list[str]]:
    """Start a second training into the folder of a running one, and a third after a kill.

    Returns:
        The message of the second training, and the problems.
    """
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    output = folder / "output"
    first = Process(train_slowly, config, output, iterations * 100)
    lock = output / folder_lock.NAME
    while first.is_alive and not (lock.is_file() and lock.read_text()):
        time.sleep(0.01)
    second = isolated(train_slowly, config, output, iterations * 100)
    message, problems = str(second.error), []
    if not isinstance(second.error, ValueError) or f"process {first.pid} on" not in message:
        problems.append(f"the second training was not refused: {second}")
    if not first.is_alive:
        problems.append("the first training ended")
    first.kill()
    first.outcome()
    third = isolated(train_slowly, config, output, iterations, False)
    if third.error is not None or not third.ended_well:
        problems.append(f"after a kill the folder is blocked: {third}")
    return message, problems
