"""The semantic result of an image that is larger than a window."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from mask_former.ops import reference_ops
from mask_former.structures import Size

from .semantic import best_classes
from .sliding_window import Run, SlidingWindow, sliding_window_scores

__all__ = ["WindowLogits"]


@dataclass(eq=False)
class WindowLogits:
    """Semantic result of an image, blended from the class scores of overlapping windows.

    The network is run once for each window when a result is computed, because the logits take 2 to
    6 MB per window, and 1 GB or more for all windows of a large photo. The semantic map is kept, so
    that the network is not run for it again.

    Blended scores are resized to the output. Mask logits cannot be, because each window has its own
    queries, so ``SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE`` has no effect.
    """

    image: Tensor
    """3×H×W, values 0 … 255."""
    window: SlidingWindow
    run: Run
    output_size: Size
    """Size of the results, (H, W)."""
    num_classes: int
    """K."""
    device: torch.device
    """Device of the network and the results."""
    reference_ops: bool = False
    """Run the reference versions of the kernels: see :mod:`mask_former.ops.reference`."""

    def __post_init__(self) -> None:
        self._map: tuple[Tensor, Tensor] | None = None

    def semantic_scores(self) -> Tensor:
        """Compute the score of each class at each pixel; runs the network.

        Returns:
            K×H×W of the output's size, fp32, values ≥ 0.
        """
        result = torch.empty(self.num_classes, *self.output_size, device=self.device)
        with self._settings():
            for rows, band in self._bands():
                result[:, rows] = band.transpose(0, 1)
        return result

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """Find the best class of each pixel and its share of the sum of all classes' scores.

        The first call runs the network; K×H×W is never held.

        Returns:
            H×W int64 and H×W fp32 in [0, 1], as :meth:`ImageLogits.semantic_map` returns them.
        """
        if self._map is None:
            with self._settings():
                ids, shares = best_classes(self._bands(), self.output_size, self.device)
            self._map = ids.short(), shares
        ids, shares = self._map
        return ids.long(), shares.clone()

    def panoptic(self, **options: Any) -> NoReturn:
        """Raise a ``ValueError``, because windows give a semantic result only."""
        self._refuse("panoptic")

    def instances(self, **options: Any) -> NoReturn:
        """Raise a ``ValueError``, because windows give a semantic result only."""
        self._refuse("instance")

    def _refuse(self, kind: str) -> NoReturn:
        height, width = self.image.shape[-2:]
        raise ValueError(
            f"There is no {kind} result for an image of {width}×{height} pixels with "
            f"TEST.SLIDING_WINDOW.SIZE {self.window.size}, because windows give a semantic result "
            "only. Set TEST.SLIDING_WINDOW.SIZE to 0."
        )

    @contextmanager
    def _settings(self) -> Iterator[None]:
        """Disable the caller's autocast, so that only ``TEST.AMP`` sets the network's precision."""
        autocast = torch.autocast(self.device.type, enabled=False)
        with torch.no_grad(), autocast, reference_ops(self.reference_ops):
            yield

    def _bands(self) -> Iterator[tuple[slice, Tensor]]:
        return sliding_window_scores(
            self.run, self.image, self.window, output_size=self.output_size, device=self.device
        )
