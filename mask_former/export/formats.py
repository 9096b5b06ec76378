"""File formats of exported graphs: functions that write a graph, and read and run it."""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from mask_former.utils.atomic_files import replace_file

from .graphs import LIMIT, STRIDE

__all__ = [
    "FORMATS",
    "INPUT",
    "OPSET",
    "Format",
    "Runner",
    "export_program",
    "onnx_file",
    "program_file",
]

OPSET = 18
"""ONNX opset of the files that are written."""
INPUT = "image"
"""Name of a graph's input."""

Runner = Callable[[Tensor], tuple[Tensor, ...]]
"""Function from images, B×3×H×W, to the outputs of a graph."""


class Format(NamedTuple):
    """File format of graphs."""

    suffix: str
    encode: Callable[[Any, Tensor, bool], bytes]
    """``encode(graph, example, dynamic)`` returns the content of the file; ``dynamic`` allows any
    batch and image size.

    The exporters' own writers would end the process on a full disk, and leave incomplete files.
    """
    read: Callable[[Path], Runner]
    needs: tuple[str, ...] = ()
    """Packages that the format needs besides torch."""

    def write(self, graph: Any, example: Tensor, path: Path, dynamic: bool) -> None:
        """Export a graph to a file, atomically; see ``encode``."""
        replace_file(path, lambda part: part.write_bytes(self.encode(graph, example, dynamic)))

    def check_packages(self) -> None:
        """Check that the packages in ``needs`` are installed.

        Raises:
            ImportError: If a package is missing.
        """
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ImportError(
                f"{', '.join(missing)} not installed: run `pip install {' '.join(missing)}`"
            )


def _dynamic_shapes(dynamic: bool) -> dict[str, dict[int, Any]] | None:
    if not dynamic:
        return None
    # The minimum is 2 because torch specialises a size of 1 as a constant.
    height, width = (torch.export.Dim(name, min=2, max=LIMIT) for name in ("h", "w"))
    batch = torch.export.Dim("batch", min=1, max=4096)
    return {INPUT: {0: batch, 2: STRIDE * height, 3: STRIDE * width}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters' logs and warnings about their internals."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@torch.no_grad()
def export_program(graph: nn.Module, example: Tensor, dynamic: bool) -> ExportedProgram:
    """Export a graph with ``torch.export``; see ``Format.encode``."""
    with _quiet():
        shapes = _dynamic_shapes(dynamic)
        return torch.export.export(graph, (example,), dynamic_shapes=shapes, strict=False)


def program_file(program: ExportedProgram) -> bytes:
    """Return the content of a ``.pt2`` file."""
    buffer = io.BytesIO()
    with _quiet():
        torch.export.save(program, buffer)
    return buffer.getvalue()


def _read_program(path: Path) -> Runner:
    module = torch.export.load(path).module()
    return lambda image: _as_tuple(module(image))


@torch.no_grad()
def onnx_file(program: ExportedProgram, outputs: Sequence[str]) -> bytes:
    """Return the content of an ``.onnx`` file, with names of the outputs."""
    with _quiet():
        # Given the module, torch would first try ways to export it that fail: that takes as long.
        converted = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(outputs),
            verbose=False,
        )
    assert converted is not None
    content: bytes = converted.model_proto.SerializeToString()
    return content


def _read_onnx(path: Path) -> Runner:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda image: tuple(
        torch.from_numpy(output) for output in session.run(None, {INPUT: image.cpu().numpy()})
    )


@torch.no_grad()
def _encode_torchscript(graph: nn.Module, example: Tensor, dynamic: bool) -> bytes:
    # A trace accepts any size anyway, so `dynamic` changes nothing.
    buffer = io.BytesIO()
    with _quiet():
        torch.jit.save(torch.jit.trace(graph, example, check_trace=False), buffer)
    return buffer.getvalue()


def _read_torchscript(path: Path) -> Runner:
    with _quiet():
        module = torch.jit.load(path)
    # The first runs at each size are slow, because TorchScript compiles again for it.
    return lambda image: _as_tuple(module(image))


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


FORMATS = {
    "torch-export": Format(
        ".pt2", lambda graph, *how: program_file(export_program(graph, *how)), _read_program
    ),
    "onnx": Format(
        ".onnx",
        lambda graph, *how: onnx_file(export_program(graph, *how), graph.outputs),
        _read_onnx,
        ("onnx", "onnxruntime", "onnxscript"),
    ),
    "torchscript": Format(".ts", _encode_torchscript, _read_torchscript),
}
"""Formats by their name on the command line."""
