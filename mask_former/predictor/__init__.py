"""The Python API: :class:`MaskFormerPredictor`, from a checkpoint to results."""

from .image_output import ImageOutput
from .predictor import MaskFormerPredictor

__all__ = ["ImageOutput", "MaskFormerPredictor"]
