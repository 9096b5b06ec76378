"""Dataset mappers, which turn a dataset dict into an example; one file per mapper."""

from .detr_panoptic import DETRPanopticDatasetMapper
from .inference import InferenceMapper
from .instance import MaskFormerInstanceDatasetMapper
from .instance_lsj import COCOInstanceLSJDatasetMapper
from .panoptic import MaskFormerPanopticDatasetMapper
from .panoptic_lsj import COCOPanopticLSJDatasetMapper
from .semantic import MaskFormerSemanticDatasetMapper
from .semantic_lsj import MaskFormerSemanticLSJDatasetMapper

__all__ = [
    "COCOInstanceLSJDatasetMapper",
    "COCOPanopticLSJDatasetMapper",
    "DETRPanopticDatasetMapper",
    "InferenceMapper",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerSemanticDatasetMapper",
    "MaskFormerSemanticLSJDatasetMapper",
]
