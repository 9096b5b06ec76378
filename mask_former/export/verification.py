"""Comparison of a graph with its model: outputs and speed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mask_former.inference import semantic_map
from mask_former.modeling import last_prediction
from mask_former.utils.timing import interleave, timed

from .formats import Runner

__all__ = ["TOLERANCE", "Parity", "Timing", "compare", "measure", "reference"]

TOLERANCE = 1e-3
"""Limit of the largest absolute difference of logits, and of the share of pixels that differ."""


class Parity(NamedTuple):
    """Difference between the outputs of a graph and its model for one batch."""

    shape: tuple[int, ...]
    """Shape of the batch: B, 3, H, W."""
    difference: float
    """Largest absolute difference of logits, or share (0 … 1) of pixels with another class."""

    @property
    def holds(self) -> bool:
        """True if the difference is at most :data:`TOLERANCE`; False if it is NaN."""
        return self.difference <= TOLERANCE


class Timing(NamedTuple):
    """Median seconds per batch."""

    eager: float
    exported: float


def reference(model: Any, name: str) -> Runner:
    """Return a function that computes the outputs of the graph ``name`` with the model itself."""

    @torch.no_grad()
    def run(image: Tensor) -> tuple[Tensor, ...]:
        with last_prediction(model):
            features = model.backbone((image - model.pixel_mean) / model.pixel_std)
            outputs = model.sem_seg_head(features)
        if isinstance(outputs, tuple):  # a per-pixel model
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
    """Run the model and its graph on ``image``, B×3×H×W, and compare their outputs.

    Raises:
        ValueError: If an output differs from the model's in shape or type.
    """
    differences = []
    for expected, found in zip(eager(image), exported(image), strict=True):
        if expected.shape != found.shape or expected.dtype != found.dtype:
            raise ValueError(
                f"For an image of {tuple(image.shape)} the model returns {tuple(expected.shape)} "
                f"{expected.dtype}, but the graph {tuple(found.shape)} {found.dtype}."
            )
        if expected.is_floating_point():
            differences.append((expected - found.to(expected.device)).abs().max())
        else:
            differences.append((expected != found.to(expected.device)).float().mean())
    return Parity(tuple(image.shape), float(torch.stack(differences).max()))


@torch.no_grad()
def measure(
    eager: Runner, exported: Runner, image: Tensor, rounds: int, after_round: Callable[[], Any]
) -> Timing:
    """Time the model and its graph, interleaved, after one warm-up round.

    Args:
        eager: The model.
        exported: Its graph.
        image: Input, B×3×H×W.
        rounds: Number of timed rounds.
        after_round: Called after each round, including the warm-up.
    """
    steps = [timed(partial(run, image), image.device) for run in (eager, exported)]
    return Timing(*map(median, interleave(steps, rounds, after_round=after_round)))
