"""What Hugging Face's ``MaskFormerImageProcessor`` makes of maps and logits, with its results.

Segmentation maps become targets (:func:`encode`), and the logits of a batch become maps
(``post_process_…``), in the conventions of ``transformers`` 5; docs/transformers.md lists what is
the same and what is not, and why. The paper's own results are :mod:`mask_former.inference`'s.
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
