"""detectron2's Cityscapes evaluators, patched: cityscapesscripts 2.3.0 needs an older numpy."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import detectron2.evaluation as d2
import numpy as np

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"]


class _EvaluatorWithIn1d(d2.DatasetEvaluator):
    """Evaluator that provides ``np.in1d`` to cityscapesscripts; numpy 2.4 removed it."""

    def evaluate(self) -> Any:
        # Unlike `in1d`, `isin` keeps the map's shape, to which the scripts reshape it anyway.
        with patch.object(np, "in1d", np.isin, create=True):
            return super().evaluate()


class CityscapesSemSegEvaluator(_EvaluatorWithIn1d, d2.CityscapesSemSegEvaluator):
    """Evaluator of IoU and iIoU of classes and of categories, in percent."""


class CityscapesInstanceEvaluator(_EvaluatorWithIn1d, d2.CityscapesInstanceEvaluator):
    """Evaluator of AP and AP50, in percent."""

    def evaluate(self) -> Any:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts

        # The scripts write their matches to the working folder, which fails for numpy integers.
        with patch.object(scripts, "writeDict2JSON", lambda *_: None):
            return super().evaluate()
