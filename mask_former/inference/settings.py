"""The settings of inference, as one value."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mask_former.structures import RESULTS

from .sliding_window import SlidingWindow

__all__ = ["InferenceSettings"]


@dataclass(frozen=True)
class InferenceSettings:
    """The results that a model gives in evaluation, and how it computes them.

    Raises:
        ValueError: if a sliding window is asked for and results that windows cannot give are on,
            or its size or stride is out of range.
    """

    semantic_on: bool = True
    panoptic_on: bool = False
    instance_on: bool = False
    object_mask_threshold: float = 0.0
    """Class probability in [0, 1] that a query needs to become a panoptic segment."""
    overlap_threshold: float = 0.0
    """Share of its own mask in [0, 1] that a panoptic segment must win."""
    topk: int = 100
    """The number of (query, class) pairs that the instance result starts from."""
    resize_first: bool = False
    """Resize mask logits to the output size before the semantic result is computed, instead of
    resizing that result. This always holds if a panoptic or instance result is on."""
    dtype: torch.dtype | None = None
    """The type of the network's mixed precision; None for fp32."""
    window_size: int = 0
    """Side in pixels of the windows that larger images are cut into; 0: none are cut."""
    window_stride: int = 0
    """Pixels from one window to the next; 0: see :class:`SlidingWindow`."""

    def __post_init__(self) -> None:
        _ = self.sliding_window

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of results that are on, the richest first."""
        return tuple(kind for kind in RESULTS if getattr(self, f"{kind}_on"))

    @property
    def resize_before_inference(self) -> bool:
        """True if the semantic result is computed from resized mask logits."""
        return self.resize_first or self.panoptic_on or self.instance_on

    @property
    def sliding_window(self) -> SlidingWindow | None:
        """The window, None if images are run whole."""
        return SlidingWindow.of(
            self.window_size,
            self.window_stride,
            panoptic_on=self.panoptic_on,
            instance_on=self.instance_on,
        )
