"""Read weights without running code, and write them.

A checkpoint becomes a dict with the weights (names to tensors) under ``model`` and the other
entries of the file. :mod:`.pickles` refuses those that would run code or take all memory.
"""

from __future__ import annotations

import copy
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .atomic_files import replace_file, save_torch
from .bounded_files import UnreadableFile, parse_json
from .errors import short
from .pickles import RefusedError, check_pickle, check_pickles, read_pickle

__all__ = [
    "CLASS_NAMES",
    "EMA",
    "INFERENCE",
    "as_tensors",
    "averaged_weights",
    "is_ordinary",
    "read_checkpoint",
    "read_extras",
    "write_weights",
]

CLASS_NAMES = "class_names"
"""Key of the class names in a checkpoint."""
EMA = "ema"
"""Key of the averaged weights in a checkpoint (the state of torch's ``AveragedModel``)."""
INFERENCE = "inference"
"""Key of the model's config and classes in a checkpoint, which inference needs."""


def read_checkpoint(path: str | Path, *, lazy: bool = False) -> dict[str, Any]:
    """Read a ``.pth``, ``.pkl`` or ``.safetensors`` file.

    Args:
        path: File to read.
        lazy: Leave the tensors of a ``.pth`` on the disk until they are used; the file must then
            stay unchanged.

    Returns:
        The content of the file, with the weights under ``model`` (some libraries call the entry
        ``state_dict``, pycls ``model_state``). Has ``class_names`` if the file names its classes,
        and ``inference`` if it carries the model's config.

    Raises:
        FileNotFoundError: If there is no such file.
        UnreadableFile: If the file is damaged, is not a checkpoint, or is refused because loading
            it would run code or take all memory.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {path} (MODEL.WEIGHTS).")
    readers: dict[str, Callable[[Path], Any]] = {
        ".pkl": read_pickle,
        ".safetensors": _read_safetensors,
    }
    try:
        content = readers.get(path.suffix, partial(_read_torch, lazy=lazy))(path)
    except RefusedError as error:
        raise UnreadableFile(
            f"{path} was refused: {error}. Only tensors, numbers, strings and containers are "
            "loaded. If you made the file yourself, save it again as a dict of tensors, such as "
            "model.state_dict()."
        ) from error
    except Exception as error:  # a damaged pickle may raise anything
        if isinstance(error, OSError) and error.filename is not None:
            raise  # the file cannot be opened
        reason = short(str(error).partition("\n")[0].partition(". ")[0].rstrip("."), 300)
        raise UnreadableFile(
            f"{path} is not a readable checkpoint: {reason or type(error).__name__}. It may be "
            "truncated or damaged: download or copy it again."
        ) from error
    if not isinstance(content, dict):
        raise UnreadableFile(f"{path} holds a {type(content).__name__}, not a dict of weights.")
    _check_class_names(content.get(CLASS_NAMES), path)
    for key in ("model", "state_dict", "model_state"):
        if isinstance(content.get(key), dict):
            weights = content.pop(key)
            return {"model": weights, **content}
    return {"model": content}


def _check_class_names(names: Any, path: Path) -> None:
    if names is not None and not (
        isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    ):
        raise UnreadableFile(
            f"{path} is not a readable checkpoint: its {CLASS_NAMES} are {short(names)}, expected "
            "a list of names. Remove the entry, or download the file again."
        )


def read_extras(path: str | Path) -> dict[str, Any]:
    """Read everything in a checkpoint except its weights, which stay on disk if the format allows.

    Raises:
        FileNotFoundError, ValueError: see :func:`read_checkpoint`.
    """
    content = read_checkpoint(path, lazy=True)
    return {key: value for key, value in content.items() if key != "model"}


def _read_torch(path: Path, lazy: bool = False) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # torch wrote another format before version 1.6
    if is_zip:
        _check_records(path, sums=not lazy)
    else:
        check_pickles(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip and lazy)
    except pickle.UnpicklingError as error:
        # The rest of torch's message advises to load the file nevertheless.
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise RefusedError.of_code(found[1]) from error
        if not is_zip:
            read_pickle(path)  # names the code in a plain pickle
        raise pickle.UnpicklingError("it is not a file that torch wrote") from error
    except RuntimeError as error:
        if "TorchScript" in str(error):
            raise RefusedError.of_code("a TorchScript program") from error
        raise


def _check_records(path: Path, *, sums: bool) -> None:
    """Check the sizes, the checksums (``sums``) and the pickles of the records of a zip file.

    Raises:
        RefusedError: If the file would take more memory than it has bytes, or endless time.
        BadZipFile: If a checksum is wrong, which torch does not check.
    """
    with path.open("rb") as whole, zipfile.ZipFile(whole) as archive:
        records = [record for record in archive.infolist() if record.file_size]
        size, claimed = path.stat().st_size, sum(record.file_size for record in records)
        if claimed > size:  # torch does not compress them
            raise RefusedError(f"its records claim {claimed} bytes, but the file has {size}")
        if sums:
            _check_sums(archive, records)
        for record in records:
            if record.filename.lower().endswith(".pkl"):
                unsigned = copy.copy(record)
                del unsigned.CRC  # a pickle is checked whatever its checksum is
                with archive.open(unsigned) as file:
                    check_pickle(file)


def _check_sums(archive: zipfile.ZipFile, records: Sequence[zipfile.ZipInfo]) -> None:
    damaged = []
    for record in records:
        try:
            with archive.open(record) as file:
                while file.read(1 << 20):
                    pass
        except Exception:  # zipfile may raise anything on damaged data
            damaged.append(record.filename)
    # If all are wrong, the file has no checksums: `torch.serialization.set_crc32_options(False)`.
    if damaged and len(damaged) < len(records):
        raise zipfile.BadZipFile(f"the checksum of its record {damaged[0]} is wrong")


def _read_safetensors(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        names = file.keys()
        content: dict[str, Any] = {"model": {name: file.get_tensor(name) for name in names}}
        metadata = file.metadata() or {}
    if CLASS_NAMES in metadata:
        content[CLASS_NAMES] = parse_json(metadata[CLASS_NAMES], CLASS_NAMES)
    if INFERENCE in metadata:
        try:
            content[INFERENCE] = parse_json(metadata[INFERENCE], INFERENCE)
        except ValueError:  # of another program; the reader of this entry reports that
            content[INFERENCE] = metadata[INFERENCE]
    return content


def as_tensors(weights: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """Convert a state dict of tensors or arrays into one of tensors.

    Args:
        weights: Names to tensors, arrays or numpy numbers.
        source: Name of the file, for the error message.

    Raises:
        ValueError: If ``weights`` is empty or holds anything else.
    """
    wrong = [k for k, v in weights.items() if not isinstance(k, str) or not _is_numeric(v)]
    if wrong or not weights:
        raise ValueError(
            f"{source} does not hold a state dict: expected names with tensors, found "
            f"{', '.join(map(short, list(weights)[:5])) or 'nothing'}."
            + (f" {short(wrong[0])} is not a dense tensor of ordinary numbers." if wrong else "")
        )
    # Copied, because the memory of an array may be read-only.
    return {
        k: v if isinstance(v, Tensor) else torch.from_numpy(np.array(v)) for k, v in weights.items()
    }


def averaged_weights(content: Mapping[str, Any], source: str | Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint, under the model's parameter names.

    Args:
        content: Content of the checkpoint.
        source: Name of the file, for the error message.

    Raises:
        ValueError: If the checkpoint has no averaged weights.
    """
    if EMA not in content:
        raise ValueError(
            f"{source} holds no averaged weights, only {', '.join(map(short, content))}: trainings "
            "with MODEL.EMA.ENABLED True save them. To use the weights that the file has, set that "
            "key to False, and leave out --ema and ?ema=True."
        )
    state = as_tensors(content[EMA], source)
    return {k.removeprefix("module."): v for k, v in state.items() if k.startswith("module.")}


_MOST_REPEATED = 1 << 26
"""Most elements of a tensor that has more of them than its file stores."""


def _is_numeric(value: Any) -> bool:
    if isinstance(value, Tensor):
        return is_ordinary(value)
    return isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"


def is_ordinary(tensor: Tensor) -> bool:
    """Return whether a tensor is dense, has its data, and holds integers or real numbers.

    A file may hold others, such as sparse or quantized ones: torch cannot compare or copy them, or
    drops their imaginary part. Floating-point numbers of 8 bits or fewer need scales to be weights.
    A view that repeats few numbers very often would take all memory once it is copied.
    """
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_nested:
        return False
    is_small = tensor.is_floating_point() and tensor.element_size() < 2
    stored = tensor.untyped_storage().nbytes()
    is_repeated = tensor.numel() > _MOST_REPEATED and tensor.nbytes > stored
    return not (tensor.is_quantized or tensor.is_complex() or is_small or is_repeated)


def write_weights(
    weights: Mapping[str, Tensor],
    path: Path,
    class_names: Sequence[str] | None = None,
    inference: Mapping[str, Any] | None = None,
) -> None:
    """Write a file for ``MODEL.WEIGHTS``, atomically.

    Args:
        weights: Names to tensors.
        path: File to write, ending in ``.safetensors``, ``.pth`` or ``.pkl``. Its folder is
            created if needed.
        class_names: Names of the model's classes, in the order of the class layer.
        inference: The model's config and classes as plain data; see
            :mod:`mask_former.checkpoint.inference_data`.

    Raises:
        ValueError: If ``path`` has another suffix.
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
    """Pickle weights as detectron2 does, which treats a file without an author as Caffe2's."""
    arrays = {name: value.numpy() for name, value in weights.items()}
    return pickle.dumps({"model": arrays, "__author__": "mask_former", **extras})
