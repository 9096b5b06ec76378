"""Training and evaluation, on detectron2's engine."""

from .trainer import Trainer

__all__ = ["Trainer"]
