"""What the user of a graph must know of it, as plain data for a JSON file beside it."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode

from mask_former.checkpoint.inference_data import classes_of

from .formats import FORMATS, OPSET
from .graphs import STRIDE

__all__ = ["describe"]


def describe(
    cfg: CfgNode, graphs: dict[str, Any], *, format_name: str, size: tuple[int, int] | None
) -> dict[str, Any]:
    """The description of the graphs of a model.

    Args:
        cfg: its config.
        graphs: see :func:`~.graphs.graphs_of`.
        format_name: a key of ``FORMATS``.
        size: (H, W) in pixels that the graphs are of; None: of any.
    """
    versions = {"torch": torch.__version__}
    for name in FORMATS[format_name].needs:
        versions[name] = __import__(name).__version__
    return {
        "format": format_name,
        "opset": OPSET if format_name == "onnx" else None,
        "versions": versions,
        "graphs": {
            name: {"file": name + FORMATS[format_name].suffix, "outputs": list(graph.outputs)}
            for name, graph in graphs.items()
        },
        "input": {
            "layout": "N×3×H×W, float32, 0 … 255",
            "channels": cfg.INPUT.FORMAT,
            "size": list(size) if size else None,
            "stride": STRIDE,
            "shortest_edge": cfg.INPUT.MIN_SIZE_TEST,
            "longest_edge": cfg.INPUT.MAX_SIZE_TEST,
            "normalisation": "inside the graph; what pads an image to the stride is the mean",
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
        },
        "classes": classes_of(cfg).to_data(),
    }
