"""From a set of masks to results (paper, sections 3.3 and 3.4): pure functions on tensors.

Everywhere ``mask_cls`` is Q×(K+1), class logits whose last column is "no object", and ``mask_pred``
is Q×h×w, mask logits, both of any floating type: a tensor, or :class:`LazyMasks`, for those that
are resized in several steps. Where a ``size`` (H, W) is given, the masks are first enlarged to it
(bilinear); otherwise H×W is h×w. Class ids are contiguous.

No function holds Q×H×W: it enlarges a band of rows that fits a CPU's cache, is done with it, and
goes on to the next. All is fp32, also inside a caller's autocast.

:class:`ImageLogits` and :class:`WindowLogits` are what the network says of one image, with the
results as methods.
"""

from .instance import instance_inference
from .logits import ImageLogits
from .masks import resize_masks
from .panoptic import panoptic_inference
from .semantic import semantic_inference, semantic_map, semantic_map_with_scores
from .settings import InferenceSettings
from .sliding_window import SlidingWindow, WindowLogits

__all__ = [
    "ImageLogits",
    "InferenceSettings",
    "SlidingWindow",
    "WindowLogits",
    "instance_inference",
    "panoptic_inference",
    "resize_masks",
    "semantic_inference",
    "semantic_map",
    "semantic_map_with_scores",
]
