"""What contenders are given: random images and targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor

__all__ = ["Work", "be_sure", "random_batch"]

_SURE = 12.0
"""A logit that leaves the other classes next to nothing."""


@dataclass(frozen=True)
class Work:
    """What a step is given. All contenders get the same random images and targets."""

    size: tuple[int, int] = (512, 512)
    """Height and width of the images, in pixels."""
    output_size: tuple[int, int] | None = None
    """Of the results; None: the images'."""
    images: int = 1
    """A batch."""
    targets: int = 12
    """An image, in training."""
    segments: int | None = None
    """In inference so many queries are sure of a class and the others of "no object", as in a
    trained model. None: what the network says."""
    seed: int = 0


def random_batch(work: Work, num_classes: int) -> list[dict[str, Any]]:
    """Noise as images, with targets that cover each of them once; as a data loader gives them."""
    generator = torch.Generator().manual_seed(work.seed)
    height, width = work.output_size or work.size

    def example() -> dict[str, Any]:
        image = torch.randint(256, (3, *work.size), generator=generator, dtype=torch.uint8)
        blobs = torch.randn(1, max(1, work.targets), 8, 8, generator=generator)
        nearest = F.interpolate(blobs, work.size, mode="bilinear")[0].argmax(0)
        instances = Instances(work.size)
        instances.gt_masks = nearest == torch.arange(work.targets)[:, None, None]
        instances.gt_classes = torch.randint(num_classes, (work.targets,), generator=generator)
        valid = torch.ones(work.size, dtype=torch.bool)
        return {
            "image": image,
            "instances": instances,
            "valid": valid,
            "height": height,
            "width": width,
        }

    return [example() for _ in range(work.images)]


def be_sure(logits: Tensor, segments: int) -> None:
    """Change B×Q×(K+1) class logits: the first queries are sure of a class, the others of none."""
    logits.zero_()
    logits[:, segments:, -1] = _SURE
    queries = torch.arange(min(segments, logits.shape[1]), device=logits.device)
    logits[:, queries, queries % (logits.shape[2] - 1)] = _SURE
