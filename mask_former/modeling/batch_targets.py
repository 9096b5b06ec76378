"""Conversion of a mapper's examples to the targets of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from mask_former.structures import Target

__all__ = ["prepare_targets"]


def prepare_targets(
    batched_inputs: list[dict[str, Any]],
    size: Sequence[int],
    device: torch.device,
    mask_ignore: bool,
) -> list[Target]:
    """Pad the masks of each image to the size of the batch.

    Args:
        batched_inputs: one dict for each image: ``instances`` with ``gt_classes`` and ``gt_masks``
            (bool N×H×W or ``BitMasks``).
        size: (H, W) of the batch.
        device: the device of the targets.
        mask_ignore: add ``valid`` (bool H×W), the pixels that count in mask losses.

    Raises:
        ValueError: if masks are larger than the batch, or if ``mask_ignore`` is True and a
            ``valid`` map is missing or has another size than the masks.
    """
    targets = []
    for example in batched_inputs:
        instances: Instances = example["instances"].to(device)
        masks = instances.gt_masks
        masks = masks.tensor if isinstance(masks, BitMasks) else masks
        padding = (0, size[1] - masks.shape[-1], 0, size[0] - masks.shape[-2])
        if min(padding) < 0:
            raise ValueError(
                f"{example.get('file_name', 'An image')}: its gt_masks have size "
                f"{tuple(masks.shape[-2:])} (height, width), larger than the padded batch, "
                f"{tuple(size)}; the mapper must transform image and masks alike."
            )
        target = Target(labels=instances.gt_classes, masks=F.pad(masks.bool(), padding))
        if mask_ignore:
            target["valid"] = F.pad(_valid(example, masks).to(device), padding)
        targets.append(target)
    return targets


def _valid(example: dict[str, Any], masks: Tensor) -> Tensor:
    """Return the map of pixels that count, bool H×W, for ``masks`` N×H×W."""
    valid, size = example.get("valid"), tuple(masks.shape[-2:])
    if valid is None or tuple(valid.shape) != size:
        found = "it is missing" if valid is None else f"its size is {tuple(valid.shape)}"
        raise ValueError(
            f"{example.get('file_name', 'An image')}: MODEL.MASK_FORMER.MASK_IGNORE needs a "
            f"'valid' map of size {size} (height, width) in the training example, but {found}. "
            "The project's mappers add it if that key is True; let your mapper add it too, or set "
            "the key to False."
        )
    return valid.bool()
