"""The Python API: :class:`MaskFormerPredictor`, from a checkpoint to results."""

from .image_logits import PictureLogits
from .predictor import MaskFormerPredictor

__all__ = ["MaskFormerPredictor", "PictureLogits"]
