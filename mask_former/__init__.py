"""MaskFormer on detectron2. Importing it registers every model part, mapper and dataset, once."""

from __future__ import annotations

from .config import add_mask_former_config
from .data.mappers import (
    DETRPanopticDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from .modeling.mask_former import MaskFormer
from .modeling.transformer_predictor import TransformerPredictor
from .predictor import MaskFormerPredictor
from .registration import register_all
from .test_time_augmentation import SemanticSegmentorWithTTA

__all__ = [
    "DETRPanopticDatasetMapper",
    "MaskFormer",
    "MaskFormerInstanceDatasetMapper",
    "MaskFormerPanopticDatasetMapper",
    "MaskFormerPredictor",
    "MaskFormerSemanticDatasetMapper",
    "SemanticSegmentorWithTTA",
    "TransformerPredictor",
    "add_mask_former_config",
]

__version__ = "0.2.0"

register_all()
