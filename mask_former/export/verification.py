"""A graph beside the model it was made of: does it say the same, and how fast?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mask_former.inference import semantic_map

from .formats import Runner

__all__ = ["TOLERANCE", "Parity", "Timing", "compare", "measure", "reference"]

TOLERANCE = 1e-3
"""Of logits: the largest absolute difference. Of class maps: the share of pixels that differ."""


class Parity(NamedTuple):
    """How far a graph is from the model on one batch."""

    shape: tuple[int, ...]
    """B, 3, H, W."""
    difference: float
    """The largest absolute one of logits, or the share of pixels of another class."""

    @property
    def holds(self) -> bool:
        return self.difference <= TOLERANCE  # and nan does not


class Timing(NamedTuple):
    """Seconds a batch, the median of some turns."""

    eager: float
    exported: float


def reference(model: Any, name: str) -> Runner:
    """The model itself, as the graph ``name`` should be; see :func:`~.graphs.graphs_of`."""

    @torch.no_grad()
    def run(image: Tensor) -> tuple[Tensor, ...]:
        features = model.backbone((image - model.pixel_mean) / model.pixel_std)
        outputs = model.sem_seg_head(features)
        if isinstance(outputs, tuple):  # a per-pixel baseline's
            return (outputs[0].argmax(1),)
        classes, masks = outputs["pred_logits"], outputs["pred_masks"]
        if name != "class_map":
            return classes, masks
        size = (image.shape[2], image.shape[3])
        return (
            torch.stack([semantic_map(*one, size) for one in zip(classes, masks, strict=True)]),
        )

    return run


def compare(eager: Runner, exported: Runner, image: Tensor) -> Parity:
    """Run both on ``image``, B×3×H×W.

    Raises:
        ValueError: if an output is of another shape or type than the model's.
    """
    differences = []
    for expected, found in zip(eager(image), exported(image), strict=True):
        if expected.shape != found.shape or expected.dtype != found.dtype:
            raise ValueError(
                f"For an image of {tuple(image.shape)} the model gives {tuple(expected.shape)} "
                f"{expected.dtype}, the graph {tuple(found.shape)} {found.dtype}."
            )
        if expected.is_floating_point():
            differences.append((expected - found.to(expected.device)).abs().max())
        else:
            differences.append((expected != found.to(expected.device)).float().mean())
    return Parity(tuple(image.shape), float(torch.stack(differences).max()))


@torch.no_grad()
def measure(
    eager: Runner, exported: Runner, image: Tensor, rounds: int, after: Callable[[], Any]
) -> Timing:
    """Time both in turns, after a turn that is not counted.

    Args:
        rounds: turns that count.
        after: called after each turn.
    """
    seconds: dict[Runner, list[float]] = {eager: [], exported: []}
    for _ in range(rounds + 1):
        for run, times in seconds.items():
            start = time.perf_counter()
            run(image)
            if image.is_cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        after()
    return Timing(*(statistics.median(times[1:]) for times in seconds.values()))
