"""Find a checkpoint in a folder, or among the models that come with the code."""

from __future__ import annotations

import logging
from pathlib import Path

from mask_former.utils.bounded_files import read_json, read_text

__all__ = ["checkpoint_in", "is_huggingface_folder", "packaged_models"]

_SUFFIXES = (".pth", ".safetensors", ".pkl")
_TRAINING_CHECKPOINTS = ("model_final.pth", "last_checkpoint", "model_best.pth")
"""The first that exists is used; ``last_checkpoint`` contains the name of a checkpoint."""
_ROOT = Path(__file__).resolve().parents[1]
_MODEL_ZOO = (_ROOT / "model_zoo", _ROOT.parent / "model_zoo")
"""The folder is inside the package in a wheel, and next to it in the repository."""


def packaged_models() -> dict[str, Path]:
    """Return the checkpoints that come with the code, by name."""
    found = [file for folder in _MODEL_ZOO for file in sorted(folder.glob("*.safetensors"))]
    return {file.stem: file for file in found}


def checkpoint_in(folder: Path) -> Path:
    """Choose the checkpoint in a folder: one that training wrote, or the only one.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If there are several, and none has a name that training writes.
    """
    for name in _TRAINING_CHECKPOINTS:
        file = folder / name
        if name == "last_checkpoint" and file.is_file():
            file = folder / read_text(file).strip()
        if file.is_file():
            logging.getLogger(__name__).info(f"{folder}: using {file.name}.")
            return file
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{folder} has no checkpoint: expected {', '.join(_TRAINING_CHECKPOINTS)}, or a file "
            f"that ends in {', '.join(_SUFFIXES)}."
        )
    if len(files) > 1:
        raise ValueError(
            f"{folder} has {len(files)} checkpoints ({', '.join(file.name for file in files[:5])}"
            f"{', …' if len(files) > 5 else ''}): give one of them."
        )
    return files[0]


def is_huggingface_folder(folder: Path) -> bool:
    """Return True if a folder holds the ``config.json`` of a ``transformers`` model."""
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" in config
