"""Conversion of a model's output, torch tensors and ``Instances``, to numpy arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import Instances
from numpy.typing import NDArray
from torch import Tensor

from mask_former.data.datasets.classes import Classes
from mask_former.ops import best_class
from mask_former.structures import RESULTS

from .arrays import InstanceResult, PanopticResult
from .image_result import Result

__all__ = ["from_detectron2", "instances_from_detectron2"]


def from_detectron2(
    results: Mapping[str, Any],
    image: NDArray[np.uint8],
    classes: Classes,
    file_name: str | None = None,
) -> Result:
    """Convert the output of a detectron2 model for one image.

    Args:
        results: Any of ``sem_seg`` (K×H×W scores, which must be ≥ 0 for valid semantic scores),
            ``panoptic_seg`` (H×W ids and segments_info) and ``instances``, on any device.
        image: H×W×3, RGB.
        classes: The K classes.
        file_name: File of the image.

    Raises:
        ValueError: if the size of a result differs from the image's.
    """
    semantic = scores = panoptic = instances = None
    if RESULTS["semantic"] in results:
        semantic, scores = _semantic_arrays(results[RESULTS["semantic"]])
    if RESULTS["panoptic"] in results:
        ids, segments = results[RESULTS["panoptic"]]
        panoptic = PanopticResult(ids.cpu().numpy().astype(np.int32, copy=False), list(segments))
    if RESULTS["instance"] in results:
        instances = instances_from_detectron2(results[RESULTS["instance"]], classes)
    return Result(image, classes, semantic, scores, panoptic, instances, file_name)


def _semantic_arrays(scores: Tensor) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Find the best class of each pixel and its share of the sum of scores; 0 if the sum is 0."""
    class_ids, best = best_class(scores)
    total = scores.sum(0, dtype=torch.float32).clamp(min=torch.finfo(torch.float32).tiny)
    return class_ids.int().cpu().numpy(), (best.float() / total).cpu().numpy()


def instances_from_detectron2(instances: Instances, classes: Classes) -> InstanceResult:
    """Convert N predicted objects and sort them by descending score."""
    found = instances.to("cpu")
    return InstanceResult.sorted_by_score(
        found.pred_masks.numpy().astype(bool, copy=False),
        found.pred_boxes.tensor.numpy().astype(np.float32, copy=False),
        found.scores.numpy().astype(np.float32, copy=False),
        found.pred_classes.numpy().astype(np.int64, copy=False),
        classes,
    )
