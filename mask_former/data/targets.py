"""Convert annotations to one mask per target.

Semantic label maps and panoptic id maps share one form, ``SegmentMap``: an 8-bit or 16-bit map
whose values are segments, and the class of each segment. Augmentation transforms this small map;
the masks are made last, in one pass. The masks of objects that may overlap are ``InstanceMasks``,
which ``instances.InstanceShapes`` makes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.data import transforms as T
from numpy.typing import NDArray
from torch import Tensor

from mask_former.structures import Size

__all__ = [
    "MAX_SEGMENT_ID",
    "InstanceMasks",
    "SegmentMap",
    "count_values",
    "decode_segment_ids",
    "index_segments",
    "masks_from_index_map",
    "pad_map",
]

MAX_SEGMENT_ID = 256**3 - 1
"""The largest segment id in COCO's panoptic PNGs, which have three bytes per pixel."""


def decode_segment_ids(rgb: NDArray[Any]) -> NDArray[Any]:
    """Decode the segment ids of a COCO panoptic PNG, R + 256·G + 256²·B.

    Args:
        rgb: H×W×3, uint8.

    Returns:
        Ids in 0 … ``MAX_SEGMENT_ID``, H×W, uint32.
    """
    padded = np.zeros((*rgb.shape[:2], 4), dtype=np.uint8)
    for byte in range(3):
        padded[..., byte] = rgb[..., byte]
    return padded.view("<u4")[..., 0]  # four bytes per pixel, the least significant first


def index_segments(
    ids: NDArray[Any], segment_ids: Sequence[int]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Replace large segment ids by small consecutive indices.

    Args:
        ids: H×W, unsigned, in 0 … ``MAX_SEGMENT_ID``.
        segment_ids: N distinct ids in 1 … ``MAX_SEGMENT_ID``.

    Returns:
        The index map, H×W, in the smallest unsigned type for N: i+1 where ``ids`` equals
        ``segment_ids[i]``, and 0 elsewhere; and the distinct values of ``ids``, ascending.
    """
    # Segments are compact, so there are few runs of equal pixels: look up one id per run.
    pixels = ids.ravel()
    starts = np.flatnonzero(np.append(True, pixels[1:] != pixels[:-1]))
    present, run_value = np.unique(pixels[starts], return_inverse=True)
    index_of = {segment_id: i for i, segment_id in enumerate(segment_ids, start=1)}
    indices = [index_of.get(value, 0) for value in present.tolist()]
    index_of_value = np.array(indices, dtype=np.min_scalar_type(len(segment_ids)))
    lengths = np.diff(starts, append=pixels.size)
    return np.repeat(index_of_value[run_value], lengths).reshape(ids.shape), present


def count_values(index_map: NDArray[Any]) -> NDArray[Any]:
    """Count the pixels of each possible value of a map H×W, uint8 (256) or uint16 (65536)."""
    pixels = index_map.ravel()
    if pixels.dtype != np.uint8:
        return np.bincount(pixels, minlength=np.iinfo(pixels.dtype).max + 1)
    even = pixels.size // 2 * 2
    pairs = np.bincount(pixels[:even].view(np.uint16), minlength=256**2).reshape(256, 256)
    counts = pairs.sum(axis=0) + pairs.sum(axis=1)  # counting pairs takes half the time
    counts[pixels[even:]] += 1
    return counts


def pad_map(index_map: NDArray[Any], size: Size, value: int) -> NDArray[Any]:
    """Pad a map to ``size`` (height, width) with ``value`` at the right and bottom.

    The map keeps its type unless ``value`` needs a larger one.
    """
    fits = value <= np.iinfo(index_map.dtype).max
    padded = np.full(size, value, dtype=index_map.dtype if fits else np.min_scalar_type(value))
    height, width = index_map.shape
    padded[:height, :width] = index_map
    return padded


def masks_from_index_map(
    index_map: NDArray[Any] | Tensor, indices: NDArray[Any] | Tensor
) -> Tensor:
    """Make one mask per index, all in one pass.

    Args:
        index_map: H×W integers.
        indices: N integers.

    Returns:
        N×H×W, bool: ``masks[i]`` is True where ``index_map`` equals ``indices[i]``.
    """
    index_map = np.asarray(index_map)
    # numpy compares 8-bit and 16-bit maps ten times as fast as torch.
    values = np.asarray(indices).astype(index_map.dtype)
    return torch.from_numpy(index_map == values[:, None, None])


@dataclass(frozen=True)
class SegmentMap:
    """The ground truth of one image, as a map of non-overlapping segments."""

    index_map: NDArray[Any]
    """H×W, uint8 or uint16: the segment of each pixel."""
    indices: NDArray[Any]
    """N: the values of ``index_map`` that are targets."""
    labels: NDArray[Any]
    """N, the class id of each target."""
    void: int
    """The value that pads ``index_map``; not in ``indices``."""

    def transform(self, transforms: T.Transform) -> SegmentMap:
        """Return the segments after a transform of the image."""
        return replace(self, index_map=transforms.apply_segmentation(self.index_map))

    def targets(self, size: Size, min_area: int = 0) -> tuple[Tensor, Tensor]:
        """Make labels and masks, padded to ``size`` at the right and bottom.

        Args:
            size: height and width, at least those of the map.
            min_area: segments with fewer pixels are dropped; 0 keeps even empty ones.

        Returns:
            Labels (N, int64) and masks (N×H×W, bool), in the order of ``indices``.
        """
        index_map, indices, labels = self.index_map, self.indices, self.labels
        if index_map.shape != size:
            index_map = pad_map(index_map, size, self.void)
        if min_area > 0 and len(indices):
            keep = count_values(index_map)[indices] >= min_area
            indices, labels = indices[keep], labels[keep]
        masks = masks_from_index_map(index_map, indices)
        return torch.as_tensor(labels, dtype=torch.int64), masks

    def valid_mask(self, size: Size) -> Tensor:
        """Mark the pixels of all targets, small ones included: bool, padded to ``size`` with False.

        The other pixels have no label or belong to a crowd.
        """
        is_target = np.zeros(np.iinfo(self.index_map.dtype).max + 1, dtype=bool)
        is_target[self.indices] = True
        valid = is_target.take(self.index_map).view(np.uint8)
        return torch.from_numpy(pad_map(valid, size, 0)).view(torch.bool)


@dataclass(frozen=True)
class InstanceMasks:
    """The ground truth of one image, as masks that may overlap.

    Pixels outside all instances are background, not unlabelled.
    """

    masks: NDArray[Any]
    """N×H×W, uint8, 0 or 1: one mask per target."""
    labels: NDArray[Any]
    """N, the class id of each target."""
    crowd: NDArray[Any]
    """H×W, uint8: 1 in crowds, which are regions whose objects are not annotated separately."""

    def targets(self, size: Size, min_area: int = 0) -> tuple[Tensor, Tensor]:
        """Make labels (N, int64) and masks (N×H×W, bool); see ``SegmentMap.targets``."""
        keep = np.count_nonzero(self.masks, axis=(1, 2)) >= min_area
        height, width = self.crowd.shape
        masks = np.zeros((np.count_nonzero(keep), *size), dtype=np.uint8)
        masks[:, :height, :width] = self.masks[keep]
        labels = torch.as_tensor(self.labels[keep], dtype=torch.int64)
        return labels, torch.from_numpy(masks).view(torch.bool)

    def valid_mask(self, size: Size) -> Tensor:
        """Mark all pixels except padding and those covered only by a crowd: H×W, bool."""
        valid = (self.crowd == 0) | self.masks.any(axis=0)
        return torch.from_numpy(pad_map(valid.view(np.uint8), size, 0)).view(torch.bool)
