"""The two kinds of models behind one interface: those that predict masks, and per-pixel models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from detectron2.config import CfgNode
from torch import Tensor, nn

from mask_former.inference import ImageLogits, WindowLogits
from mask_former.ops import best_class
from mask_former.structures import RESULTS

__all__ = ["Adapter", "Logits", "PixelLogits", "adapt"]


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


class Adapter(Protocol):
    """A model as :class:`MaskFormerPredictor` uses it."""

    def kinds(self, cfg: CfgNode) -> tuple[str, ...]:
        """The kinds of results that the config turns on."""

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[Logits]:
        """Run the model once and return the logits of each image."""


def adapt(model: nn.Module, thing_ids: Iterable[int]) -> Adapter:
    """Choose the adapter of a model: a model that has a ``predict`` method predicts masks.

    Args:
        model: in evaluation mode.
        thing_ids: contiguous ids of the thing classes; a model that predicts masks is given them.
    """
    if hasattr(model, "predict"):
        return _MaskAdapter(model, thing_ids)
    return _PixelAdapter(model)


class _MaskAdapter:
    def __init__(self, model: Any, thing_ids: Iterable[int]) -> None:
        self._model = model
        model.thing_ids = frozenset(thing_ids)

    def kinds(self, cfg: CfgNode) -> tuple[str, ...]:
        test = cfg.MODEL.MASK_FORMER.TEST
        return tuple(kind for kind in RESULTS if test[f"{kind.upper()}_ON"])

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[Logits]:
        logits: Sequence[Logits] = self._model.predict(batched_inputs)
        return logits


class _PixelAdapter:
    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def kinds(self, cfg: CfgNode) -> tuple[str, ...]:
        return ("semantic",)

    def predict(self, batched_inputs: list[dict[str, Any]]) -> Sequence[Logits]:
        return [PixelLogits(output["sem_seg"]) for output in self._model(batched_inputs)]
