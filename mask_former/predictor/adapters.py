"""One interface for models that predict masks and for per-pixel models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from torch import Tensor, nn

from mask_former.inference import ImageLogits, InferenceSettings, WindowLogits
from mask_former.ops import best_class

__all__ = ["Logits", "MaskModel", "PixelLogits", "as_mask_model"]


@dataclass(frozen=True)
class PixelLogits:
    """The output of a per-pixel model for one image: class logits of each pixel, and no masks."""

    class_logits: Tensor
    """K×H×W, at the size of the results."""

    @property
    def output_size(self) -> tuple[int, int]:
        """Size of the results, (H, W)."""
        height, width = self.class_logits.shape[-2:]
        return height, width

    @property
    def num_classes(self) -> int:
        """Number of classes, K."""
        return len(self.class_logits)

    def semantic_scores(self) -> Tensor:
        """Class probabilities of each pixel, K×H×W, in [0, 1], with sum 1."""
        return self.class_logits.softmax(0)

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """Return the best class of each pixel (H×W) and its probability (H×W)."""
        return best_class(self.semantic_scores())

    def panoptic(self, **options: Any) -> NoReturn:
        """Refuse, with a ``ValueError``."""
        self._refuse("panoptic")

    def instances(self, **options: Any) -> NoReturn:
        """Refuse, with a ``ValueError``."""
        self._refuse("instance")

    def _refuse(self, kind: str) -> NoReturn:
        raise ValueError(
            f"This model classifies pixels and has no masks: it gives no {kind} result. Ask for "
            "kinds=['semantic']."
        )


Logits = ImageLogits | WindowLogits | PixelLogits


class MaskModel(Protocol):
    """A model as the predictor uses it; :class:`mask_former.MaskFormer` is one."""

    thing_ids: frozenset[int]
    """Contiguous ids of the thing classes."""
    inference: InferenceSettings

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[Logits]:
        """Run the model once and return the logits of each image."""


class _PixelModelAdapter:
    """A per-pixel model behind the interface of :class:`MaskModel`."""

    thing_ids: frozenset[int] = frozenset()
    inference = InferenceSettings()  # the semantic result alone

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def predict(self, batched_inputs: list[dict[str, Any]]) -> list[PixelLogits]:
        return [PixelLogits(output["sem_seg"]) for output in self._model(batched_inputs)]


def as_mask_model(model: nn.Module) -> MaskModel:
    """Return a model that has a ``predict`` method, or adapt a per-pixel model, which has none."""
    return model if hasattr(model, "predict") else _PixelModelAdapter(model)  # type: ignore[return-value]
