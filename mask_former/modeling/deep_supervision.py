"""Predictions from every layer: in training, and in evaluation on request."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from torch import nn

__all__ = ["DeeplySupervised", "all_predictions", "last_prediction"]


class DeeplySupervised(nn.Module):
    """A module with several predictions, which returns all of them under deep supervision."""

    deep_supervision: bool
    """True if training supervises every prediction, not only the last."""
    ALL_BY_DEFAULT: ClassVar[bool] = False
    """True if a call in evaluation returns all predictions outside :func:`last_prediction`."""
    predict_all_in_evaluation: bool = False
    """True inside :func:`all_predictions`."""
    only_last: bool = False
    """True inside :func:`last_prediction`."""

    @property
    def predicts_all(self) -> bool:
        """True if the next forward pass returns all predictions."""
        by_default = self.ALL_BY_DEFAULT and not self.only_last
        return self.deep_supervision and (
            self.training or self.predict_all_in_evaluation or by_default
        )


@contextmanager
def all_predictions(model: nn.Module) -> Iterator[None]:
    """Make a model in evaluation mode return all predictions that training supervises.

    Inside the context ``aux_outputs`` holds the earlier predictions, as in training mode; dropout
    and norms stay in evaluation mode.
    """
    modules = _deeply_supervised(model)
    before = [module.predict_all_in_evaluation for module in modules]
    for module in modules:
        module.predict_all_in_evaluation = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.predict_all_in_evaluation = value


@contextmanager
def last_prediction(model: nn.Module) -> Iterator[None]:
    """Make a model in evaluation mode return only its last prediction, which results need.

    Training mode and :func:`all_predictions` take precedence.
    """
    modules = _deeply_supervised(model)
    for module in modules:
        module.only_last = True
    try:
        yield
    finally:
        # Not the value before: another thread may have set it, and resets it to False.
        for module in modules:
            module.only_last = False


def _deeply_supervised(model: nn.Module) -> list[DeeplySupervised]:
    return [module for module in model.modules() if isinstance(module, DeeplySupervised)]
