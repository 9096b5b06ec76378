"""Input of benchmarked models: random images and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

from mask_former.structures import Size

__all__ = ["Workload", "force_confident", "random_batch"]

_CONFIDENT = 12.0
"""Logit that leaves a probability of almost 0 to the other classes."""


@dataclass(frozen=True)
class Workload:
    """Input of a step; all benchmarked models get the same random images and targets."""

    size: Size = (512, 512)
    """Height and width of the images, in pixels."""
    output_size: Size | None = None
    """Height and width of the results, in pixels. Default: those of the images."""
    images: int = 1
    """Images per batch."""
    targets: int = 12
    """Targets per image, in training."""
    segments: int | None = None
    """Number of queries that are confident of a class in inference, while the others predict "no
    object", as in a trained model. Default: the model's own predictions."""
    seed: int = 0


def random_batch(workload: Workload, num_classes: int) -> list[dict[str, Any]]:
    """Make noise images with targets that cover each image once, in the data loader's format."""
    generator = torch.Generator().manual_seed(workload.seed)
    height, width = workload.output_size or workload.size

    def example() -> dict[str, Any]:
        image = torch.randint(256, (3, *workload.size), generator=generator, dtype=torch.uint8)
        blobs = torch.randn(1, max(1, workload.targets), 8, 8, generator=generator)
        nearest = F.interpolate(blobs, workload.size, mode="bilinear")[0].argmax(0)
        instances = Instances(workload.size)
        instances.gt_masks = nearest == torch.arange(workload.targets)[:, None, None]
        instances.gt_classes = torch.randint(num_classes, (workload.targets,), generator=generator)
        return {
            "image": image,
            "instances": instances,
            "valid": torch.ones(workload.size, dtype=torch.bool),
            "height": height,
            "width": width,
        }

    return [example() for _ in range(workload.images)]


def force_confident(logits: Tensor, segments: int) -> None:
    """Overwrite B×Q×(K+1) logits: some queries are confident of a class, the others of none.

    Args:
        logits: Class logits, changed in place.
        segments: Number of queries that are confident of a class.
    """
    logits.zero_()
    logits[:, segments:, -1] = _CONFIDENT
    queries = torch.arange(min(segments, logits.shape[1]), device=logits.device)
    logits[:, queries, queries % (logits.shape[2] - 1)] = _CONFIDENT
