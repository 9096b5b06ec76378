"""Training and evaluation, on detectron2's engine."""

from .run import evaluate, train
from .trainer import Trainer

__all__ = ["Trainer", "evaluate", "train"]
