"""detectron2's Cityscapes evaluators, where numpy is newer than cityscapesscripts 2.3.0."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import detectron2.evaluation as d2
import numpy as np

__all__ = ["CityscapesInstanceEvaluator", "CityscapesSemSegEvaluator"]


class _EvaluatorWithIn1d(d2.DatasetEvaluator):
    """The scripts call ``np.in1d``, which numpy 2.4 no longer has."""

    def evaluate(self) -> Any:
        # They bring the result to the map's shape, which `isin` gives in the first place.
        with patch.object(np, "in1d", np.isin, create=True):
            return super().evaluate()


class CityscapesSemSegEvaluator(_EvaluatorWithIn1d, d2.CityscapesSemSegEvaluator):
    """IoU and iIoU of classes and of categories, in percent."""


class CityscapesInstanceEvaluator(_EvaluatorWithIn1d, d2.CityscapesInstanceEvaluator):
    """AP and AP50, in percent."""

    def evaluate(self) -> Any:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as scripts

        # They dump what they matched into the working folder, and fail at numpy's integers.
        with patch.object(scripts, "writeDict2JSON", lambda *_: None):
            return super().evaluate()
