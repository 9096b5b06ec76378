"""detectron2's checkpointer, but a file is either whole or not there, and is never executed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from detectron2.checkpoint import DetectionCheckpointer

from ..checkpoint import read_checkpoint

__all__ = ["Checkpointer", "remove_parts", "replace_file"]


def replace_file(path: Path, write: Any) -> None:
    """Write a file beside ``path`` with ``write(part)``, then put it in its place at once."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove what a run that was killed while it wrote left in ``folder``."""
    for part in folder.glob(".*.part"):
        part.unlink(missing_ok=True)


class Checkpointer(DetectionCheckpointer):
    """Atomic, and safe to point at a file of unknown origin.

    Beside detectron2's formats it takes ``.safetensors``, and ``timm://NAME``.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name.pth`` and then point ``last_checkpoint`` to it."""
        if not self.save_dir or not self.save_to_disk:
            return
        data: dict[str, Any] = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info(f"Saving checkpoint to {path}")
        replace_file(path, lambda part: torch.save(data, part))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pointer = Path(self.save_dir) / "last_checkpoint"
        replace_file(pointer, lambda part: part.write_text(last_filename_basename))

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a checkpoint; an empty ``path`` loads nothing.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is broken, or asks for more than data.
        """
        if path:
            plain = urlparse(path)._replace(query="").geturl()
            if not os.path.isfile(self.path_manager.get_local_path(plain)):
                raise FileNotFoundError(f"There is no checkpoint {plain} (MODEL.WEIGHTS).")
        try:
            return super().load(path, checkpointables)
        finally:
            self._parsed_url_during_load = None  # detectron2 forgets it after an error

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pyth"):
            return super()._load_file(filename)  # pycls: torch.load, which reads weights only
        content = read_checkpoint(filename)
        if filename.endswith(".pkl") and "__author__" not in content:
            # Caffe2's layout: names are matched by detectron2's heuristics.
            content.update(__author__="Caffe2", matching_heuristics=True)
            content["model"] = content["model"].get("blobs", content["model"])
        if "matching_heuristics=True" in getattr(self._parsed_url_during_load, "query", ""):
            content["matching_heuristics"] = True
        return content
