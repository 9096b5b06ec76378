"""detectron2's Cityscapes evaluators, with the numpy that cityscapesscripts 2.3.0 predates."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import detectron2.evaluation as d2
import numpy as np

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"]


class _EvaluatorWithIn1d(d2.DatasetEvaluator):
    """An evaluator whose scripts find ``np.in1d``, which numpy 2.4 no longer has."""

    def evaluate(self) -> Any:
        # `isin` keeps the shape of the map, to which the scripts reshape the result anyway.
        with patch.object(np, "in1d", np.isin, create=True):
            return super().evaluate()


class CityscapesSemSegEvaluator(_EvaluatorWithIn1d, d2.CityscapesSemSegEvaluator):
    """Evaluator of IoU and iIoU of classes and of categories, in percent."""


class CityscapesInstanceEvaluator(_EvaluatorWithIn1d, d2.CityscapesInstanceEvaluator):
    """Evaluator of AP and AP50, in percent."""

    def evaluate(self) -> Any:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts

        # The scripts dump their matches into the working folder, which fails for numpy integers.
        with patch.object(scripts, "writeDict2JSON", lambda *_: None):
            return super().evaluate()
