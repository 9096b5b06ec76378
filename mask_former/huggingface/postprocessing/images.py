"""Split the outputs of a batch into those of its images."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from mask_former.ops import LazyMasks, WholeMasks, as_masks
from mask_former.structures import Size

__all__ = ["ImagePrediction", "Sizes", "split_batch"]

Sizes = Sequence[Size] | Tensor
"""One size for each image of a batch; as a tensor, B×2."""

_NAMES = (("pred_logits", "pred_masks"), ("class_queries_logits", "masks_queries_logits"))
_STRIDE = 4
"""Stride of the mask logits, in pixels of the network's input."""


class ImagePrediction(NamedTuple):
    """The outputs for one image, and the size of its result."""

    mask_cls: Tensor
    """Class logits, Q×(K+1), fp32."""
    masks: LazyMasks | WholeMasks
    """The mask logits of Q queries."""
    size: Size | None
    """Size (H, W) to which the result is resized; None: the masks already have that size."""


def split_batch(
    outputs: Mapping[str, Any],
    target_sizes: Sizes | None,
    image_sizes: Sizes | None,
) -> Iterator[ImagePrediction]:
    """Yield the prediction of each image; see :func:`.results.post_process_semantic`."""
    names = next((pair for pair in _NAMES if all(name in outputs for name in pair)), None)
    if names is None:
        raise KeyError(
            f"The outputs have {sorted(outputs)}; expected {' or '.join(map(str, _NAMES))}."
        )
    classes, masks = (outputs[name].detach() for name in names)
    targets = _sizes(target_sizes, len(classes), "target_sizes")
    images = _sizes(image_sizes, len(classes), "image_sizes")
    padded = masks.shape[-2] * _STRIDE, masks.shape[-1] * _STRIDE
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        logits = as_masks(masks[index])
        if image is None:
            yield ImagePrediction(classes[index].float(), logits, target or logits.size)
            continue
        if image[0] > padded[0] or image[1] > padded[1]:
            raise ValueError(
                f"image_sizes has {image} (height, width) for image {index}, but mask logits of "
                f"{tuple(masks.shape[-2:])} belong to an input of {padded}: give the image's size "
                "in the network's input; the size of the image file belongs in target_sizes."
            )
        logits = logits.resize(padded).crop(image).resize(target)
        yield ImagePrediction(classes[index].float(), logits, None)


def _sizes(sizes: Sizes | None, count: int, name: str) -> list[Size | None]:
    """Return one size for each image."""
    if sizes is None:
        return [None] * count
    if len(sizes) != count:
        raise ValueError(
            f"{name} has {len(sizes)} sizes for the {count} images of the outputs: give one "
            "(height, width) for each image."
        )
    return [(int(height), int(width)) for height, width in sizes]
