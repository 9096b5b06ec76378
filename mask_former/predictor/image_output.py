"""The output of the network for one image, from which its results are computed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mask_former.data.datasets.classes import Classes
from mask_former.inference import InferenceSettings, SegmentationLogits
from mask_former.results import PanopticResult, Result
from mask_former.results.conversion import instances_from_detectron2
from mask_former.structures import RESULTS

__all__ = ["ImageOutput", "check_kinds"]


@dataclass(frozen=True)
class ImageOutput:
    """The network's output for one image; results need no further forward pass."""

    image: NDArray[np.uint8]
    """H×W×3, RGB."""
    classes: Classes
    logits: SegmentationLogits
    defaults: InferenceSettings
    file_name: str | None = None
    """The file that the image was read from, or None."""

    @torch.no_grad()
    def result(
        self,
        kinds: Sequence[str] | str | None = None,
        *,
        object_mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        topk: int | None = None,
    ) -> Result:
        """Compute the results, at the size of the image.

        Args:
            kinds: One or more of "panoptic", "instance" and "semantic", whether or not the config
                turns them on; None: those that it turns on.
            object_mask_threshold: Class probability that a panoptic segment needs, in [0, 1]; None:
                the config's.
            overlap_threshold: Share of its own mask that a panoptic segment must win, in [0, 1];
                None: the config's.
            topk: Number of (query, class) pairs that the instance result starts from, 1 or more;
                None: the config's.

        Raises:
            ValueError: If a kind is unknown, the model cannot compute it, or a value is out of its
                range.
        """
        given = {
            "object_mask_threshold": object_mask_threshold,
            "overlap_threshold": overlap_threshold,
            "topk": topk,
        }
        options = {
            name: getattr(self.defaults, name) if value is None else value
            for name, value in given.items()
        }
        _check_options(options)
        found = {kind: self._compute(kind, options) for kind in self._kinds(kinds)}
        semantic, scores = found.get("semantic", (None, None))
        return Result(
            image=self.image,
            classes=self.classes,
            semantic=semantic,
            semantic_scores=scores,
            panoptic=found.get("panoptic"),
            instances=found.get("instance"),
            file_name=self.file_name,
        )

    def _kinds(self, kinds: Sequence[str] | str | None) -> tuple[str, ...]:
        if kinds is not None:
            return check_kinds(kinds)
        if not self.defaults.kinds:
            raise ValueError(
                "The config turns on no result: give kinds=…, or set one of MODEL.MASK_FORMER.TEST."
                "{SEMANTIC,PANOPTIC,INSTANCE}_ON."
            )
        return self.defaults.kinds

    def _compute(self, kind: str, options: Mapping[str, Any]) -> Any:
        thing_ids = self.classes.thing_ids
        if kind == "semantic":
            ids, scores = self.logits.semantic_map()
            return ids.int().cpu().numpy(), scores.float().cpu().numpy()
        if kind == "panoptic":
            if not thing_ids:
                _warn_no_thing_classes()
            thresholds = {name: value for name, value in options.items() if name != "topk"}
            ids, segments = self.logits.panoptic(thing_ids=thing_ids, **thresholds)
            return PanopticResult(ids.int().cpu().numpy(), segments)
        found = self.logits.instances(topk=options["topk"], thing_ids=thing_ids or None)
        return instances_from_detectron2(found, self.classes)


def check_kinds(kinds: Sequence[str] | str) -> tuple[str, ...]:
    """Return the kinds of results, each once.

    Raises:
        ValueError: If a kind is unknown, or there is none.
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


@cache  # logged once
def _warn_no_thing_classes() -> None:
    logging.getLogger(__name__).warning(
        "No class is known to be a thing: panoptic results merge all segments of a class. To "
        "separate the objects of some classes, use from_pretrained(…, things=[…]) in Python."
    )
