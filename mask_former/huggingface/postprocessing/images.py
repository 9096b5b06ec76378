"""The pictures of a batch of outputs, and where each lies in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mask_former.ops import LazyMasks

__all__ = ["Picture", "Size", "Sizes", "pictures_of"]

Size = tuple[int, int]
"""Height and width."""
Sizes = Sequence[Size] | Tensor
"""One a picture; as a tensor, B×2."""

_NAMES = (("pred_logits", "pred_masks"), ("class_queries_logits", "masks_queries_logits"))
_STRIDE = 4
"""Pixels of the network's input, either way, to a cell of the mask logits."""


class Picture(NamedTuple):
    """What a result is made of."""

    mask_cls: Tensor
    """Q×(K+1), fp32."""
    masks: LazyMasks
    """The mask logits of Q queries."""
    size: Size | None
    """What the result is resized to; None: the masks have the result's size already."""


def pictures_of(
    outputs: Mapping[str, Any],
    target_sizes: Sizes | None,
    image_sizes: Sizes | None,
) -> Iterator[Picture]:
    """The pictures of a batch."""
    names = next((pair for pair in _NAMES if all(name in outputs for name in pair)), None)
    if names is None:
        raise KeyError(
            f"The outputs have {sorted(outputs)}; expected {' or '.join(map(str, _NAMES))}."
        )
    classes, masks = (outputs[name].detach() for name in names)
    targets = _sizes(target_sizes, len(classes), "target_sizes")
    images = _sizes(image_sizes, len(classes), "image_sizes")
    padded = masks.shape[-2] * _STRIDE, masks.shape[-1] * _STRIDE
    for place, (image, target) in enumerate(zip(images, targets, strict=True)):
        logits = LazyMasks.of(masks[place])
        if image is None:
            yield Picture(classes[place].float(), logits, target or logits.size)
            continue
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(
                f"image_sizes has {image} (height, width) for picture {place}, but mask logits of "
                f"{tuple(masks.shape[-2:])} are of an input of {padded}: give the size of the "
                "image as the network saw it, not that of the file (which is target_sizes')."
            )
        logits = logits.resize(padded).crop(image).resize(target)
        yield Picture(classes[place].float(), logits, None)


def _sizes(sizes: Sizes | None, count: int, name: str) -> list[Size | None]:
    """One size a picture."""
    if sizes is None:
        return [None] * count
    if len(sizes) != count:
        raise ValueError(
            f"{name} has {len(sizes)} sizes for the {count} pictures of the outputs: give one "
            "(height, width) a picture."
        )
    return [(int(height), int(width)) for height, width in sizes]
