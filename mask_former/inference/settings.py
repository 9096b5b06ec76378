"""Settings of inference."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mask_former.structures import RESULTS

from .sliding_window import SlidingWindow

__all__ = ["InferenceSettings"]


@dataclass(frozen=True)
class InferenceSettings:
    """Kinds of results that a model computes in evaluation, and their settings.

    Raises:
        ValueError: if a sliding window is set and panoptic or instance results, which windows
            cannot give, are on, or if the size or stride of the window is out of range.
    """

    semantic_on: bool = True
    panoptic_on: bool = False
    instance_on: bool = False
    object_mask_threshold: float = 0.0
    """Minimum class probability of a panoptic segment, in [0, 1]."""
    overlap_threshold: float = 0.0
    """Minimum fraction of its own mask that a panoptic segment must win, in [0, 1]."""
    segment_within_mask: bool = False
    """A panoptic segment lies within its query's own mask; see :func:`.panoptic_inference`."""
    topk: int = 100
    """Number of (query, class) pairs from which the instance result is selected."""
    resize_first: bool = False
    """Resize mask logits to the output size before the semantic result is computed, instead of
    resizing that result. Always done if panoptic or instance results are on."""
    dtype: torch.dtype | None = None
    """Data type of the network's mixed precision; None: fp32."""
    window_size: int = 0
    """Side in pixels of the windows into which larger images are cut; 0: no windows."""
    window_stride: int = 0
    """Pixels from one window to the next; 0: see :class:`SlidingWindow`."""

    window_mode: str = ""
    """ "even": see :class:`SlidingWindow`."""

    def __post_init__(self) -> None:
        _ = self.sliding_window

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of results that are on, the richest first."""
        return tuple(kind for kind in RESULTS if getattr(self, f"{kind}_on"))

    @property
    def resize_before_inference(self) -> bool:
        """True if the semantic result is computed from resized mask logits."""
        return self.resize_first or self.panoptic_on or self.instance_on

    @property
    def sliding_window(self) -> SlidingWindow | None:
        """The sliding window, or None if images are run in one piece."""
        return SlidingWindow.of(
            self.window_size,
            self.window_stride,
            self.window_mode,
            panoptic_on=self.panoptic_on,
            instance_on=self.instance_on,
        )
