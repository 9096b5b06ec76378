"""What a network says of a picture, before a result is made of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mask_former.data.datasets.classes import Classes
from mask_former.inference import ImageLogits, WindowLogits
from mask_former.results import PanopticResult, Result
from mask_former.results.conversion import instances_from_detectron2
from mask_former.structures import RESULTS

__all__ = ["PictureLogits", "PixelLogits", "ResultOptions", "check_kinds"]


@dataclass(frozen=True)
class PixelLogits:
    """Class scores of each pixel and no masks: what per-pixel models give."""

    class_logits: Tensor
    """K×H×W, at the output's size."""

    @property
    def output_size(self) -> tuple[int, int]:
        """(H, W)."""
        height, width = self.class_logits.shape[-2:]
        return height, width

    @property
    def num_classes(self) -> int:
        return len(self.class_logits)

    def semantic_scores(self) -> Tensor:
        """K×H×W, in [0, 1]: the classes' probabilities, which add up to 1."""
        return self.class_logits.softmax(0)

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """The best class of each pixel (H×W) and its probability (H×W)."""
        shares, ids = self.semantic_scores().max(0)
        return ids, shares

    def panoptic(self, **options: Any) -> NoReturn:
        """Raises: ValueError: always."""
        self._refuse("panoptic")

    def instances(self, **options: Any) -> NoReturn:
        """Raises: ValueError: always."""
        self._refuse("instance")

    def _refuse(self, kind: str) -> NoReturn:
        raise ValueError(
            f"This model classifies pixels and has no masks: it gives no {kind} result. Ask for "
            "kinds=['semantic']."
        )


@dataclass(frozen=True)
class ResultOptions:
    """What :meth:`PictureLogits.result` takes where nothing else is asked for: the config's."""

    kinds: tuple[str, ...]
    object_mask_threshold: float
    overlap_threshold: float
    topk: int


@dataclass(frozen=True)
class PictureLogits:
    """What the network says of a picture: any result of it is made without a new forward pass."""

    image: NDArray[np.uint8]
    """H×W×3, RGB: the picture."""
    classes: Classes
    logits: ImageLogits | WindowLogits | PixelLogits
    defaults: ResultOptions
    file_name: str | None = None
    """Where the picture was read from, if it was."""

    @torch.no_grad()
    def result(
        self,
        kinds: Sequence[str] | str | None = None,
        *,
        object_mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        topk: int | None = None,
    ) -> Result:
        """The results at the picture's own size.

        Args:
            kinds: of "panoptic", "instance" and "semantic", whether the config turns them on or
                not; None: those that it turns on.
            object_mask_threshold: class probability that a panoptic segment needs, in [0, 1].
            overlap_threshold: share of its own mask that a panoptic segment must win, in [0, 1].
            topk: (query, class) pairs that the instance result starts from, 1 or more. These three
                are the config's where they are None.

        Raises:
            ValueError: for a kind that there is not or the model cannot give, or a value out of
                its range.
        """
        asked = {
            "object_mask_threshold": object_mask_threshold,
            "overlap_threshold": overlap_threshold,
            "topk": topk,
        }
        options = {
            name: getattr(self.defaults, name) if value is None else value
            for name, value in asked.items()
        }
        _check_options(options)
        found = {kind: self._make(kind, options) for kind in self._kinds(kinds)}
        semantic, shares = found.get("semantic", (None, None))
        return Result(
            image=self.image,
            classes=self.classes,
            semantic=semantic,
            semantic_scores=shares,
            panoptic=found.get("panoptic"),
            instances=found.get("instance"),
            file_name=self.file_name,
        )

    def _kinds(self, kinds: Sequence[str] | str | None) -> tuple[str, ...]:
        if kinds is not None:
            return check_kinds(kinds)
        if not self.defaults.kinds:
            raise ValueError(
                "The config turns on no result: give kinds=, or set one of MODEL.MASK_FORMER.TEST."
                "{SEMANTIC,PANOPTIC,INSTANCE}_ON."
            )
        return self.defaults.kinds

    def _make(self, kind: str, options: Mapping[str, Any]) -> Any:
        thing_ids = self.classes.thing_ids
        if kind == "semantic":
            ids, shares = self.logits.semantic_map()
            return ids.int().cpu().numpy(), shares.float().cpu().numpy()
        if kind == "panoptic":
            if not thing_ids:
                _say_that_there_are_no_things()
            thresholds = {name: value for name, value in options.items() if name != "topk"}
            ids, segments = self.logits.panoptic(thing_ids=thing_ids, **thresholds)
            return PanopticResult(ids.int().cpu().numpy(), segments)
        found = self.logits.instances(topk=options["topk"], thing_ids=thing_ids or None)
        return instances_from_detectron2(found, self.classes)


def check_kinds(kinds: Sequence[str] | str) -> tuple[str, ...]:
    """The kinds of results, each once.

    Raises:
        ValueError: for one that there is not, or none at all.
    """
    asked = (kinds,) if isinstance(kinds, str) else tuple(dict.fromkeys(kinds))
    unknown = [kind for kind in asked if kind not in RESULTS]
    if unknown or not asked:
        found = ", ".join(map(repr, unknown)) or "nothing"
        raise ValueError(f"kinds: found {found}; expected one or more of {list(RESULTS)}.")
    return asked


def _check_options(options: Mapping[str, Any]) -> None:
    for name in ("object_mask_threshold", "overlap_threshold"):
        if not 0 <= options[name] <= 1:
            raise ValueError(f"{name} is {options[name]}; it must lie in [0, 1].")
    if options["topk"] < 1:
        raise ValueError(f"topk is {options['topk']}; expected 1 or more.")


@cache  # said once
def _say_that_there_are_no_things() -> None:
    logging.getLogger(__name__).warning(
        "No class is known to be a thing: in the panoptic result all segments of a class are one. "
        "from_pretrained(…, things=[…]) names the classes whose objects are told apart."
    )
