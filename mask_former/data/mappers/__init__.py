"""Dataset mappers: from a dataset dict to a training example. One file a mapper."""

from mask_former.data.mappers.detr_panoptic import DETRPanopticDatasetMapper
from mask_former.data.mappers.inference import InferenceMapper
from mask_former.data.mappers.instance import MaskFormerInstanceDatasetMapper
from mask_former.data.mappers.panoptic import MaskFormerPanopticDatasetMapper
from mask_former.data.mappers.semantic import MaskFormerSemanticDatasetMapper

__all__ = [
    "DETRPanopticDatasetMapper",
    "InferenceMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
]
