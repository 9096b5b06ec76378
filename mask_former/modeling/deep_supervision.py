"""Predictions from every layer: in training, and in evaluation on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["DeeplySupervised", "all_predictions"]


class DeeplySupervised(nn.Module):
    """A module with several predictions, which returns all of them under deep supervision."""

    deep_supervision: bool
    """True if training supervises every prediction, not only the last."""
    predict_all_in_evaluation: bool = False
    """True inside :func:`all_predictions`."""

    @property
    def predicts_all(self) -> bool:
        """True if the next forward pass returns all predictions."""
        return self.deep_supervision and (self.training or self.predict_all_in_evaluation)


@contextmanager
def all_predictions(model: nn.Module) -> Iterator[None]:
    """Make a model in evaluation mode return all predictions that training supervises.

    Inside the context ``aux_outputs`` holds the earlier predictions, as in training mode; dropout
    and norms stay in evaluation mode.
    """
    modules = [module for module in model.modules() if isinstance(module, DeeplySupervised)]
    before = [module.predict_all_in_evaluation for module in modules]
    for module in modules:
        module.predict_all_in_evaluation = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.predict_all_in_evaluation = value
