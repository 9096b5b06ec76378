"""Matching and losses: tensors in, tensors out; nothing here knows a config."""

from .criterion import SetCriterion
from .mask_losses import dice_loss, pairwise_dice_cost, pairwise_focal_cost, sigmoid_focal_loss
from .matcher import HungarianMatcher
from .nonfinite import ON_NONFINITE, NonFiniteError
from .point_sampling import PointSampling

__all__ = [
    "ON_NONFINITE",
    "HungarianMatcher",
    "NonFiniteError",
    "PointSampling",
    "SetCriterion",
    "dice_loss",
    "pairwise_dice_cost",
    "pairwise_focal_cost",
    "sigmoid_focal_loss",
]
