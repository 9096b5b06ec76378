"""Reading weights without running code, writing them, and renaming those of old layouts.

A checkpoint file becomes a dict with ``model`` (names to tensors) and whatever else it holds. Only
data is read: a pickle that would call anything beyond arrays and plain containers is refused.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic_files import replace_file, save_torch

__all__ = [
    "CLASS_NAMES",
    "EMA",
    "INFERENCE",
    "as_tensors",
    "averaged_weights",
    "read_checkpoint",
    "read_extras",
    "rename_old_layout",
    "replace_file",
    "save_torch",
    "write_weights",
]

T = TypeVar("T")

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

CLASS_NAMES = "class_names"
"""The key of a checkpoint's class names."""
EMA = "ema"
"""The key of the state of the averaged weights (torch's ``AveragedModel``)."""
INFERENCE = "inference"
"""The key of what inference needs beside the weights: the model's config and classes."""

_OLD_PIXEL_DECODER = re.compile(
    r"^sem_seg_head\.(?=(?:adapter_\d+|layer_\d+|mask_features|input_proj|transformer)\.)"
)


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain containers, nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        classic = module.replace("numpy._core", "numpy.core")
        if (classic, name) not in _ALLOWED_GLOBALS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return super().find_class(classic.replace("numpy.core", _NUMPY_CORE), name)


def read_checkpoint(path: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """Read a ``.pth``, ``.pkl`` or ``.safetensors`` file.

    Args:
        path: of the file.
        lazy: leave tensors of a ``.pth`` on the disk until they are used; the file must stay.

    Returns:
        The file's content, with the weights under ``model`` (which others call ``state_dict`` or,
        pycls, ``model_state``). ``class_names`` is there where the file names its classes, and
        ``inference`` where it carries the model's config.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is broken, or asks for more than data.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path} (MODEL.WEIGHTS).")
    readers: dict[str, Callable[[Path], Any]] = {
        ".pkl": _read_pkl,
        ".safetensors": _read_safetensors,
    }
    try:
        content = readers.get(path.suffix, partial(_read_torch, lazy=lazy))(path)
    except Exception as error:  # reading a broken pickle may raise anything
        if isinstance(error, OSError) and error.filename is not None:
            raise  # it cannot be opened
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} is no readable checkpoint: {reason}. Only data is read: arrays, tensors and "
            "plain containers. A truncated download? Then fetch it again; one that holds other "
            "objects must be saved anew as a dict of tensors."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    for key in ("model", "state_dict", "model_state"):
        if isinstance(content.get(key), dict):
            weights = content.pop(key)
            return {"model": weights, **content}
    return {"model": content}


def read_extras(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds beside the weights, which are not read where the format allows that.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`.
    """
    content = read_checkpoint(path, lazy=True)
    return {key: value for key, value in content.items() if key != "model"}


def _read_torch(path: Path, lazy: bool = False) -> Any:
    is_zip = zipfile.is_zipfile(path)  # files of before torch 1.6 are none
    if is_zip and not lazy:
        _check_sums(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and lazy)
    except pickle.UnpicklingError as error:
        # torch's own text goes on to advise loading the file all the same.
        asked = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"it asks for {asked[1]}" if asked else "torch did not write it"
        raise pickle.UnpicklingError(reason) from error


def _check_sums(path: Path) -> None:
    """Raise BadZipFile where a record is not as it was written: torch does not look."""
    damaged = []
    with path.open("rb") as whole, zipfile.ZipFile(whole) as archive:
        records = [record for record in archive.infolist() if record.file_size]
        for record in records:
            try:
                with archive.open(record) as file:
                    while file.read(1 << 20):
                        pass
            except Exception:  # of zipfile's, which seeks and unpacks what may be nonsense
                damaged.append(record.filename)
    # Where none is right, torch wrote none: `torch.serialization.set_crc32_options(False)`.
    if damaged and len(damaged) < len(records):
        raise zipfile.BadZipFile(f"it is damaged, its record {damaged[0]} is not what was written")


def _read_pkl(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _read_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
        metadata = file.metadata() or {}
    if CLASS_NAMES in metadata:
        content[CLASS_NAMES] = json.loads(metadata[CLASS_NAMES])
    if INFERENCE in metadata:
        try:
            content[INFERENCE] = json.loads(metadata[INFERENCE])
        except ValueError:  # somebody else's; whoever needs it will say so
            content[INFERENCE] = metadata[INFERENCE]
    return content


def as_tensors(weights: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """A state dict of tensors from one of tensors or arrays; ``source`` stands in the error.

    Raises:
        ValueError: if it is empty or holds anything else.
    """
    if not weights or not all(isinstance(k, str) and _is_numeric(v) for k, v in weights.items()):
        raise ValueError(
            f"{source} holds no state dict: expected names with tensors, found "
            f"{', '.join(map(str, list(weights)[:5])) or 'nothing'}."
        )
    # A copy, for an array may lie in memory that is read-only.
    return {
        k: v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for k, v in weights.items()
    }


def averaged_weights(content: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """The averaged weights in a checkpoint, under the model's own names.

    Args:
        content: of the checkpoint.
        source: its name, for the error.

    Raises:
        ValueError: if it holds none.
    """
    if EMA not in content:
        raise ValueError(
            f"{source} holds no averaged weights, only {', '.join(map(str, content))}: a run with "
            "MODEL.EMA.ENABLED True keeps them. To use the file as it is, set that to False, and "
            "leave out --ema and ?ema=True."
        )
    state = as_tensors(content[EMA], source)
    return {k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")}


def _is_numeric(value: Any) -> bool:
    return isinstance(value, Tensor) or (
        isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufc"
    )


def write_weights(
    weights: Mapping[str, Tensor],
    path: Path,
    class_names: Sequence[str] | None = None,
    inference: Mapping[str, Any] | None = None,
) -> None:
    """Write a file that ``MODEL.WEIGHTS`` takes, whole or not at all.

    Args:
        weights: names to tensors.
        path: ends in ``.safetensors``, ``.pth`` or ``.pkl``; its folder is made.
        class_names: of the classes that the weights were trained on, in their order.
        inference: what inference needs beside the weights, as plain data.

    Raises:
        ValueError: for another suffix.
    """
    tensors = {name: value.contiguous() for name, value in weights.items()}
    extras: dict[str, Any] = {} if class_names is None else {CLASS_NAMES: list(class_names)}
    if inference is not None:
        extras[INFERENCE] = dict(inference)
    writers: dict[str, Callable[[Path], Any]] = {
        ".safetensors": lambda part: save_file(
            tensors, part, {key: json.dumps(value) for key, value in extras.items()}
        ),
        ".pth": lambda part: save_torch({"model": tensors, **extras}, part),
        ".pkl": lambda part: part.write_bytes(_detectron2_pkl(tensors, extras)),
    }
    if path.suffix not in writers:
        raise ValueError(f"The output is {path}; it must end in {', '.join(writers)}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, writers[path.suffix])


def _detectron2_pkl(weights: Mapping[str, Tensor], extras: Mapping[str, Any]) -> bytes:
    """detectron2 takes a ``.pkl`` without an author for one of Caffe2's."""
    arrays = {name: value.numpy() for name, value in weights.items()}
    return pickle.dumps({"model": arrays, "__author__": "mask_former", **extras})


def rename_old_layout(weights: Mapping[str, T], keep: Collection[str] = ()) -> dict[str, T]:
    """The same weights under the names of today.

    Early MaskFormer checkpoints have the pixel decoder's parameters directly under
    ``sem_seg_head.``; what was saved from a wrapped model begins with ``module.``. Renaming twice
    is renaming once.

    Args:
        weights: names to whatever.
        keep: names of the model, which stay as they are: a head of one's own may use the old ones.
    """
    while weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    renamed = {}
    for name, value in weights.items():
        new = _OLD_PIXEL_DECODER.sub("sem_seg_head.pixel_decoder.", name)
        renamed[name if name in keep or new in weights else new] = value
    return renamed
