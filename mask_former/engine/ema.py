"""An exponential moving average of the trained weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mask_former.checkpoint.resuming import check_average

__all__ = ["WeightAverage"]


class WeightAverage(AveragedModel):
    """torch's ``AveragedModel`` of a model's weights and of the statistics of its norm layers.

    After each step, ``averaged = decay · averaged + (1 - decay) · trained``. ``module`` is the
    model with the averaged weights. Integer buffers (indices, counts) are copied, because their
    average would be rounded down.
    """

    def __init__(self, model: nn.Module, decay: float, start_iter: int = 0) -> None:
        """Start with a copy of the model.

        Args:
            model: Trained model, without a wrapper for distributed training.
            decay: Decay of the average, in [0, 1).
            start_iter: Iteration at which averaging starts. Until then, the average is a copy of
                the trained weights.

        Raises:
            ValueError: If ``decay`` is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"MODEL.EMA.DECAY is {decay}; it must lie in [0, 1), such as 0.999.")
        super().__init__(model, multi_avg_fn=_average_or_copy(decay), use_buffers=True)
        self.start_iter = start_iter
        self.requires_grad_(False).eval()

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> WeightAverage | None:
        """Build the average that ``MODEL.EMA`` describes, or return None if it is off."""
        node = cfg.MODEL.EMA
        return cls(model, node.DECAY, node.START_ITER) if node.ENABLED else None

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise ValueError if a state from a file is not the average of this model."""
        check_average(state, self.state_dict())

    def update(self, model: nn.Module, iteration: int) -> None:
        """Add the weights that ``model`` has after the step ``iteration``, counted from 0."""
        if iteration <= self.start_iter:
            self.n_averaged.zero_()  # makes torch copy the weights
        self.update_parameters(model)


def _average_or_copy(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Any], None]:
    average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Any) -> None:
        # torch calls this with tensors of one type at a time.
        if averaged[0].is_floating_point():
            average(averaged, current, count)
        else:
            for old, new in zip(averaged, current, strict=True):
                old.copy_(new)

    return update
