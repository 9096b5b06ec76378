"""MaskFormer on detectron2. Importing it registers every model part, mapper and dataset, once."""

from __future__ import annotations

from .config.keys import add_mask_former_config
from .data.datasets.catalog import register_tables
from .data.mappers import (
    DETRPanopticDatasetMapper,
    MaskFormerInstanceDatasetMapper,
    MaskFormerPanopticDatasetMapper,
    MaskFormerSemanticDatasetMapper,
)
from .modeling.mask_former import MaskFormer
from .modeling.test_time_augmentation import SemanticSegmentorWithTTA
from .modeling.transformer_decoder.maskformer import TransformerPredictor
from .predictor.predictor import MaskFormerPredictor
from .registries import load_plugin, plugins

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
    "load_plugin",
]

__version__ = "0.2.0"

plugins()
register_tables()
