"""Dataset mappers, which turn a dataset dict into an example; one file per mapper."""

from .detr_panoptic import DETRPanopticDatasetMapper
from .inference import InferenceMapper
from .instance import MaskFormerInstanceDatasetMapper
from .panoptic import MaskFormerPanopticDatasetMapper
from .semantic import MaskFormerSemanticDatasetMapper

__all__ = [
    "DETRPanopticDatasetMapper",
    "InferenceMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
]
