"""Conversions like those of Hugging Face's ``MaskFormerImageProcessor``, with the same results.

Segmentation maps become targets (:func:`encode`), and the logits of a batch become maps
(``post_process_…``), in the conventions of ``transformers`` 5; docs/transformers.md lists what is
the same, what differs, and why. The results of the paper are in :mod:`mask_former.inference`.
"""

from .encoding import encode
from .results import (
    PostProcessed,
    PostProcessedSegment,
    post_process_instance,
    post_process_panoptic,
    post_process_semantic,
)

__all__ = [
    "PostProcessed",
    "PostProcessedSegment",
    "encode",
    "post_process_instance",
    "post_process_panoptic",
    "post_process_semantic",
]
