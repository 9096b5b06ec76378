"""Hostile files, which would run a command or write elsewhere if read carelessly, and links."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import load_cfg
from mask_former.data.datasets.table import read_table
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.utils.weight_files import read_extras
from tests.helpers.tiny_model import write_tiny_model
from tests.robustness.trainings import SameImages, tiny_cfg

MARKER = "executed"

FORGED = "[11-28 07:00:00 mask_former.demo]: 999 images done, 0 failed"
NAME = f"a\n{FORGED}\x1b[2J\x1b]0;owned\x07"
"""Name of a file or class that forges a line of the log and commands the terminal."""


def assert_harmless(output: str) -> None:
    """Check that ``NAME`` in the output of a command is neither a line nor a control sequence."""
    assert not [line for line in output.splitlines() if line.startswith(FORGED)]
    for sequence in ("\x1b[2J", "\x1b]0;", "\x07"):
        assert sequence not in output, output


class _Command:
    """An object that creates the marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def hostile_files(folder: Path) -> dict[str, Callable[[], Any]]:
    """Write hostile files into ``folder``, and return the function that reads each, by name.

    No reader may create the file ``MARKER``.
    """
    marker = folder / MARKER
    command = _Command(marker)
    tag = f"!!python/object/apply:os.system ['touch {marker}']"
    weights = {"a": torch.zeros(3)}
    content = {"model": {**weights, "b": command}}
    (folder / "plain.pkl").write_bytes(pickle.dumps(content))
    (folder / "old.pth").write_bytes(pickle.dumps(content))
    torch.save(content, folder / "zip.pth")
    torch.save(content, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    torch.save({"model": weights, "inference": command}, folder / "beside.pth")
    header = {"class_names": pickle.dumps(command, 0).decode("latin1"), "inference": tag}
    save_file(weights, folder / "header.safetensors", header)
    carried = json.dumps({"config": f"SEED: {tag}", "classes": []})
    save_file(weights, folder / "config.safetensors", {"inference": carried})
    (folder / "tag.yaml").write_text(f"SEED: {tag}\n")
    (folder / "based.yaml").write_text("_BASE_: tag.yaml\n")
    # of the right length to lead from the cache folder to the marker
    leading_out = f"http://127.0.0.1:9/{'../' * 20}{marker}"
    (folder / "base_url.yaml").write_text(f"_BASE_: {leading_out}\n")
    (folder / "encoded_url.yaml").write_text(f"_BASE_: {leading_out.replace('..', '%2e%2e')}\n")
    (folder / "weights_url.yaml").write_text(f"MODEL: {{WEIGHTS: '{leading_out}'}}\n")
    (folder / "table.json").write_text(f'{{"datasets": "{tag}"}}')

    def load(name: str) -> Callable[[], Any]:
        model = torch.nn.Linear(1, 1)
        return lambda: Checkpointer(model).load(str(folder / name))

    def predict(name: str) -> Callable[[], Any]:
        return lambda: MaskFormerPredictor.from_pretrained(folder / name)

    checkpoints = ("plain.pkl", "old.pth", "zip.pth", "legacy.pth", "beside.pth")
    return {
        **{name: load(name) for name in checkpoints},
        **{f"{name} (extras)": _extras(folder / name) for name in checkpoints},
        "header.safetensors": load("header.safetensors"),
        "header.safetensors (predictor)": predict("header.safetensors"),
        "config.safetensors": predict("config.safetensors"),
        "tag.yaml": lambda: load_cfg(str(folder / "tag.yaml")),
        "based.yaml": lambda: load_cfg(str(folder / "based.yaml")),
        "tag.yaml (predictor)": predict("tag.yaml"),
        "base_url.yaml": lambda: load_cfg(str(folder / "base_url.yaml")),
        "encoded_url.yaml": lambda: load_cfg(str(folder / "encoded_url.yaml")),
        "weights_url.yaml": predict("weights_url.yaml"),
        "table.json": lambda: read_table(folder / "table.json"),
    }


def hostile_training(folder: Path) -> tuple[Path, Callable[[], Any]]:
    """Write a checkpoint whose optimizer state is too small, and return what resumes from it.

    torch's fused kernels would write outside of its arrays.
    """
    config, _ = write_tiny_model(folder, SEMANTIC_ON=True)
    output = folder / "output"

    def train(iterations: int, resume: bool) -> None:
        trainer = SameImages(tiny_cfg(config, output, SOLVER__MAX_ITER=iterations))
        trainer.resume_or_load(resume)
        trainer.train()

    train(1, resume=False)
    path = output / "model_final.pth"
    content = torch.load(path, weights_only=True)
    for state in content["trainer"]["_trainer"]["optimizer"]["state"].values():
        state.update(exp_avg=torch.zeros(1), exp_avg_sq=torch.zeros(1))
    torch.save(content, path)
    return path, lambda: train(2, resume=True)


def plant_links(folder: Path, names: Iterable[str]) -> Path:
    """Plant links where predictable temporary files of this process would be.

    Args:
        names: of the files that are going to be written.

    Returns:
        The file that the links lead to; it holds "precious".
    """
    victim = folder / "victim"
    victim.write_text("precious")
    for name in names:
        for part in (f".{name}.{os.getpid()}.part", f".{name}.part", f"{name}.part", f"{name}.tmp"):
            (folder / part).symlink_to(victim)
    return victim


def _extras(path: Path) -> Callable[[], Any]:
    return lambda: read_extras(path)
