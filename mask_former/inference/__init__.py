"""Pure functions that compute results from a set of masks (paper, section 3.4).

Their argument ``mask_cls`` is Q×(K+1), class logits whose last column is "no object", and
``mask_pred`` is Q×h×w, mask logits, both of any floating-point type: a tensor, or
:class:`~mask_former.ops.LazyMasks` for logits that are resized in several steps. With a ``size``
(H, W) the masks are first resized to it (bilinear); without, H×W is h×w. Class ids are contiguous.

No function holds Q×H×W: each one resizes and processes one band of rows at a time, which fits a
CPU's cache. Everything is computed in fp32, even inside a caller's autocast.

:class:`SegmentationLogits` is the interface of a network's output for one image, with a method for
each result: :class:`ImageLogits`, :class:`WindowLogits` and :class:`PixelLogits` implement it.
"""

from .instance import instance_inference
from .logits import ImageLogits, PixelLogits, SegmentationLogits
from .masks import resize_masks
from .panoptic import panoptic_inference
from .semantic import semantic_inference, semantic_map, semantic_map_with_scores
from .settings import InferenceSettings
from .sliding_window import SlidingWindow, even_windows
from .window_logits import WindowLogits

__all__ = [
    "ImageLogits",
    "InferenceSettings",
    "PixelLogits",
    "SegmentationLogits",
    "SlidingWindow",
    "WindowLogits",
    "even_windows",
    "instance_inference",
    "panoptic_inference",
    "resize_masks",
    "semantic_inference",
    "semantic_map",
    "semantic_map_with_scores",
]
