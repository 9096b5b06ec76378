"""Reading weights without running code.

A checkpoint file becomes a dict with ``model`` (names to tensors) and whatever else it holds. Only
data is read: a pickle that would call anything beyond arrays and plain containers is refused.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

__all__ = ["read_checkpoint"]

_ALLOWED_GLOBALS = {
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("_codecs", "encode"),
}
"""What arrays and containers need, whatever pickle protocol they are written with."""

_NUMPY_CORE = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
"""Where this numpy keeps what others may have written under the other name."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain containers, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        classic = module.replace("numpy._core", "numpy.core")
        if (classic, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(classic.replace("numpy.core", _NUMPY_CORE), name)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a ``.pth``, ``.pkl`` or ``.safetensors`` file.

    Returns:
        The file's content, with the weights under ``model``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken, or asks for more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path} (MODEL.WEIGHTS).")
    readers: dict[str, Callable[[Path], Any]] = {".pkl": _read_pkl, ".safetensors": load_file}
    try:
        content = readers.get(path.suffix, _read_torch)(path)
    except OSError:
        raise
    except Exception as error:  # reading a broken pickle may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no readable checkpoint: {reason}. Only data is read: arrays, tensors and "
            "plain containers. A truncated download? Then fetch it again; one that holds other "
            "objects must be saved anew as a dict of tensors."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    return content if "model" in content else {"model": content}


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own text goes on to advise loading the file all the same.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "torch did not write it"
        raise pickle.UnpicklingError(reason) from error


def _read_pkl(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()
