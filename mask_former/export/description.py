"""Description of exported graphs, as plain data for a JSON file next to them."""

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
    """Describe the graphs of a model: files, versions, inputs and classes.

    Args:
        cfg: The model's config.
        graphs: The graphs by name; see :func:`~.graphs.graphs_of`.
        format_name: A key of ``FORMATS``.
        size: Input size of the graphs, (H, W) in pixels; None if they accept any size.
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
            "normalisation": "inside the graph; pad images to the stride with the mean",
            "mean": list(cfg.MODEL.PIXEL_MEAN),
            "std": list(cfg.MODEL.PIXEL_STD),
        },
        "classes": classes_of(cfg).to_data(),
    }
