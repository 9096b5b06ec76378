"""Tests that every set loss passes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode

from mask_former.losses import build_criterion
from tests.helpers.core_cases import layers_of, random_batch

from .common import CLASSES, small


class LossBattery:
    """The contract of a set loss: its terms by name, a value for each layer, and their weights."""

    name: str
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys."""

    def losses(self, cfg: CfgNode, counts: tuple[int, ...], layers: int = 3) -> Any:
        """Return a criterion with only this loss, its losses, and the predictions of each layer."""
        options = {"MODEL.MASK_FORMER.LOSSES": [self.name], **self.options}
        criterion = build_criterion(small(cfg, options))
        outputs, targets = random_batch(seed=2, layers=layers, counts=counts, classes=CLASSES)
        predictions = layers_of(outputs)
        for prediction in predictions:
            for name in ("pred_logits", "pred_masks"):
                prediction[name].requires_grad_()
        found = criterion({**predictions[-1], "aux_outputs": predictions[:-1]}, targets)
        return criterion, found, predictions

    @pytest.mark.parametrize("counts", [(2, 3), (0, 1), (0, 0), (9, 2)], ids=str)
    def test_terms_are_finite_for_any_number_of_targets(
        self, cfg: CfgNode, counts: tuple[int, ...]
    ) -> None:
        _, found, _ = self.losses(cfg, counts)
        assert found and all(value.isfinite() for value in found.values())

    def test_each_term_has_a_value_for_each_layer_and_a_weight(self, cfg: CfgNode) -> None:
        criterion, found, _ = self.losses(cfg, (2, 1), layers=3)
        for term in criterion.loss_weights:
            assert {term, f"{term}_0", f"{term}_1"} <= set(found)
        assert len(found) == 3 * len(criterion.loss_weights)

    def test_a_term_has_gradients_in_its_own_layer_only(self, cfg: CfgNode) -> None:
        criterion, found, predictions = self.losses(cfg, (2, 1), layers=2)
        sum(found[f"{term}_0"] for term in criterion.loss_weights).backward()
        first, last = predictions
        has_gradient = [
            any(p[k].grad is not None and p[k].grad.abs().sum() > 0 for k in p)
            for p in (first, last)
        ]
        assert has_gradient == [True, False]

    def test_the_order_of_the_images_is_irrelevant(self, cfg: CfgNode) -> None:
        criterion, found, predictions = self.losses(cfg, (2, 1))
        _, targets = random_batch(seed=2, layers=3, counts=(2, 1), classes=CLASSES)
        layers = [{k: v.flip(0) for k, v in prediction.items()} for prediction in predictions]
        again = criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets[::-1])
        for name, value in found.items():
            torch.testing.assert_close(again[name], value, rtol=1e-5, atol=1e-6)
