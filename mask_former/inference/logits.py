"""The output of a network for one image, and the results computed from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from detectron2.structures import Instances
from torch import Tensor

from mask_former.ops import LazyMasks, WholeMasks, as_masks, best_class, reference_ops
from mask_former.structures import SegmentInfo, Size

from .instance import instance_inference
from .panoptic import panoptic_inference
from .semantic import semantic_inference, semantic_map_with_scores

__all__ = ["ImageLogits", "PixelLogits", "SegmentationLogits"]


class SegmentationLogits(Protocol):
    """Results of one image, each computed on request.

    Every method may be called several times, with different thresholds.
    """

    @property
    def num_classes(self) -> int:
        """K, without "no object"."""

    @property
    def output_size(self) -> Size:
        """Size of the results, (H, W)."""

    def semantic_scores(self) -> Tensor:
        """Compute the score of each class at each pixel: K×H×W, fp32, values ≥ 0."""

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """Find the best class of each pixel and its share of the sum of all classes' scores.

        Returns:
            H×W int64 and H×W fp32 in [0, 1].
        """

    def panoptic(
        self,
        *,
        thing_ids: Iterable[int],
        object_mask_threshold: float,
        overlap_threshold: float,
        label_ids_to_fuse: Iterable[int] | None = None,
    ) -> tuple[Tensor, list[SegmentInfo]]:
        """Compute segment ids, H×W, int32, and segments: see :func:`panoptic_inference`.

        Raises:
            ValueError: if masks of whole objects are not available; the message names the fix.
        """

    def instances(self, *, topk: int, thing_ids: Iterable[int] | None = None) -> Instances:
        """Find the best (query, class) pairs: see :func:`instance_inference`.

        Raises:
            ValueError: if masks of whole objects are not available; the message names the fix.
        """


@dataclass(frozen=True, eq=False)
class ImageLogits:
    """Class and mask logits of one image that was run in one piece.

    The mask logits are resized (bilinear) to the padded input and cropped to the image. Then either
    they or (semantic only) the result is resized to the output.
    """

    mask_cls: Tensor
    """Q×(K+1), class logits; the last column is "no object"."""
    mask_pred: Tensor
    """Q×h×w, mask logits of the padded input."""
    padded_size: Size
    """Size of the network's input, (H, W)."""
    image_size: Size
    """Size of the image, which is at the top left of the input."""
    output_size: Size
    """Size of the results."""
    resize_before_inference: bool = False
    """Resize mask logits to the output size before the semantic result is computed, instead of
    resizing the result. Panoptic and instance results always use resized mask logits."""
    segment_within_mask: bool = False
    """A panoptic segment lies within its query's own mask; see :func:`panoptic_inference`."""
    reference_ops: bool = False
    """Run the reference versions of the kernels: see :mod:`mask_former.ops.reference`."""

    @property
    def num_classes(self) -> int:
        """K, without "no object"."""
        return self.mask_cls.shape[-1] - 1

    @property
    def image_masks(self) -> LazyMasks | WholeMasks:
        """Mask logits at the image's size, Q×H×W."""
        with reference_ops(self.reference_ops):
            return as_masks(self.mask_pred).resize(self.padded_size).crop(self.image_size)

    def semantic_scores(self) -> Tensor:
        """Compute the score of each class at each pixel: see :func:`semantic_inference`."""
        with reference_ops(self.reference_ops):
            return semantic_inference(
                self.mask_cls, self._semantic_masks(), result_size=self.output_size
            )

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """Find the best class and its share: see :func:`semantic_map_with_scores`."""
        with reference_ops(self.reference_ops):
            return semantic_map_with_scores(
                self.mask_cls, self._semantic_masks(), result_size=self.output_size
            )

    def panoptic(
        self,
        *,
        thing_ids: Iterable[int],
        object_mask_threshold: float,
        overlap_threshold: float,
        label_ids_to_fuse: Iterable[int] | None = None,
    ) -> tuple[Tensor, list[SegmentInfo]]:
        """Compute segment ids, H×W, int32, and segments: see :func:`panoptic_inference`."""
        with reference_ops(self.reference_ops):
            return panoptic_inference(
                self.mask_cls,
                self.image_masks.resize(self.output_size),
                thing_ids=thing_ids,
                object_mask_threshold=object_mask_threshold,
                overlap_threshold=overlap_threshold,
                label_ids_to_fuse=label_ids_to_fuse,
                segment_within_mask=self.segment_within_mask,
            )

    def instances(self, *, topk: int, thing_ids: Iterable[int] | None = None) -> Instances:
        """Find the best (query, class) pairs: see :func:`instance_inference`."""
        with reference_ops(self.reference_ops):
            masks = self.image_masks.resize(self.output_size)
            return instance_inference(self.mask_cls, masks, topk=topk, thing_ids=thing_ids)

    def _semantic_masks(self) -> LazyMasks | WholeMasks:
        masks = self.image_masks
        return masks.resize(self.output_size) if self.resize_before_inference else masks


@dataclass(frozen=True, eq=False)
class PixelLogits:
    """Output of a per-pixel model for one image: class logits of each pixel, without masks."""

    class_logits: Tensor
    """K×H×W, at the size of the results."""

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_logits)

    @property
    def output_size(self) -> Size:
        """Size of the results, (H, W)."""
        height, width = self.class_logits.shape[-2:]
        return height, width

    def semantic_scores(self) -> Tensor:
        """Compute class probabilities of each pixel: K×H×W, in [0, 1], with sum 1."""
        return self.class_logits.softmax(0)

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """Find the best class of each pixel (H×W) and its probability (H×W)."""
        return best_class(self.semantic_scores())

    def panoptic(self, **options: Any) -> NoReturn:
        """Raise a ``ValueError``, because there are no masks."""
        self._refuse("panoptic")

    def instances(self, **options: Any) -> NoReturn:
        """Raise a ``ValueError``, because there are no masks."""
        self._refuse("instance")

    def _refuse(self, kind: str) -> NoReturn:
        raise ValueError(
            f"This model classifies pixels and has no masks, so it has no {kind} result: ask for "
            "kinds=['semantic']."
        )
