"""One interface for models that predict masks and for per-pixel models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import nn

from mask_former.inference import InferenceSettings, PixelLogits, SegmentationLogits

__all__ = ["MaskModel", "as_mask_model"]


class MaskModel(Protocol):
    """Interface of models in the predictor; :class:`mask_former.MaskFormer` implements it."""

    thing_ids: frozenset[int]
    """Contiguous ids of the thing classes."""
    inference: InferenceSettings

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[SegmentationLogits]:
        """Run the model once and return the logits of each image."""


class _PixelModelAdapter:
    """Adapter of a per-pixel model to the interface :class:`MaskModel`."""

    thing_ids: frozenset[int] = frozenset()
    inference = InferenceSettings()  # only the semantic result

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[PixelLogits]:
        return [PixelLogits(output["sem_seg"]) for output in self._model(batched_inputs)]


def as_mask_model(model: nn.Module) -> MaskModel:
    """Return a model that has a ``predict`` method, or adapt a per-pixel model, which has none."""
    return model if hasattr(model, "predict") else _PixelModelAdapter(model)  # type: ignore[return-value]
