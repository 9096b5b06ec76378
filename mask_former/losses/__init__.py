"""Matching and losses on tensors; :mod:`.build` builds them from a config."""

from .build import build_criterion, build_matcher
from .criterion import SetCriterion
from .mask_losses import dice_loss
from .mask_terms import CrossEntropyTerm, FocalTerm
from .matcher import HungarianMatcher
from .nonfinite import ON_NONFINITE, NonFiniteError
from .point_sampling import PointRule
from .set_losses import ClassificationLoss, MaskLoss, MatchedBatch

__all__ = [
    "ON_NONFINITE",
    "ClassificationLoss",
    "CrossEntropyTerm",
    "FocalTerm",
    "HungarianMatcher",
    "MaskLoss",
    "MatchedBatch",
    "NonFiniteError",
    "PointRule",
    "SetCriterion",
    "build_criterion",
    "build_matcher",
    "dice_loss",
]
