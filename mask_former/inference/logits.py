"""What the network says of one image, and the results that are made of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from detectron2.structures import Instances
from torch import Tensor

from mask_former.ops import LazyMasks
from mask_former.structures import SegmentInfo, Size

from .instance import instance_inference
from .panoptic import panoptic_inference
from .semantic import semantic_inference, semantic_map_with_scores

__all__ = ["ImageLogits"]


@dataclass(frozen=True, eq=False)
class ImageLogits:
    """The logits of one image and the way to its pixels.

    The mask logits are enlarged (bilinear) to the padded input, cropped to the image, and brought
    to the output's size: before inference, or (semantic alone) after it. No method runs the
    network; each may be called again, with other thresholds.
    """

    mask_cls: Tensor
    """Q×(K+1), class logits; the last is "no object"."""
    mask_pred: Tensor
    """Q×h×w, mask logits of the padded input."""
    padded_size: Size
    """Of the network's input."""
    image_size: Size
    """Of the image in it, at its top left."""
    output_size: Size
    """Of the results."""
    resize_before_inference: bool = False
    """Bring mask logits to the output's size before the semantic result is computed, instead of
    resizing the result. Always so in panoptic and instance results."""

    @property
    def num_classes(self) -> int:
        """K."""
        return self.mask_cls.shape[-1] - 1

    @property
    def image_masks(self) -> LazyMasks:
        """The mask logits at the image's size."""
        return LazyMasks.of(self.mask_pred).resize(self.padded_size).crop(self.image_size)

    def semantic_scores(self) -> Tensor:
        """How much speaks for each class: see :func:`semantic_inference`.

        Returns:
            K×H×W of the output's size, fp32, values ≥ 0.
        """
        return semantic_inference(self.mask_cls, self._semantic_masks, result_size=self.output_size)

    def semantic_map(self) -> tuple[Tensor, Tensor]:
        """The best class of each pixel and its share of the sum of all classes' scores.

        Returns:
            H×W int64 and H×W fp32 in [0, 1]: see :func:`semantic_map_with_scores`.
        """
        return semantic_map_with_scores(
            self.mask_cls, self._semantic_masks, result_size=self.output_size
        )

    def panoptic(
        self,
        *,
        thing_ids: Iterable[int],
        object_mask_threshold: float,
        overlap_threshold: float,
        label_ids_to_fuse: Iterable[int] | None = None,
    ) -> tuple[Tensor, list[SegmentInfo]]:
        """Ids H×W, int32, and the segments: see :func:`panoptic_inference`."""
        return panoptic_inference(
            self.mask_cls,
            self.image_masks.resize(self.output_size),
            thing_ids=thing_ids,
            object_mask_threshold=object_mask_threshold,
            overlap_threshold=overlap_threshold,
            label_ids_to_fuse=label_ids_to_fuse,
        )

    def instances(self, *, topk: int, thing_ids: Iterable[int] | None = None) -> Instances:
        """The best (query, class) pairs: see :func:`instance_inference`."""
        masks = self.image_masks.resize(self.output_size)
        return instance_inference(self.mask_cls, masks, topk=topk, thing_ids=thing_ids)

    @property
    def _semantic_masks(self) -> LazyMasks:
        masks = self.image_masks
        return masks.resize(self.output_size) if self.resize_before_inference else masks
