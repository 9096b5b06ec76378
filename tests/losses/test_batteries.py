"""Every criterion, matcher and set loss passes the shared battery of its kind."""

from tests.helpers.batteries.criterion import CriterionBattery
from tests.helpers.batteries.loss import LossBattery
from tests.helpers.batteries.matcher import MatcherBattery


class TestSetCriterion(CriterionBattery):
    name = "SetCriterion"


class TestHungarianMatcher(MatcherBattery):
    name = "HungarianMatcher"


class TestHungarianMatcherOfCrossEntropy(MatcherBattery):
    name = "HungarianMatcher"
    options = {"MODEL.MASK_FORMER.MASK_TERM": "cross_entropy"}  # noqa: RUF012


class TestClassificationLoss(LossBattery):
    name = "labels"


class TestMaskLoss(LossBattery):
    name = "masks"
