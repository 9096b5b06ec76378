"""Tests that every criterion passes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode

from mask_former.losses import build_criterion
from tests.helpers.core_cases import layers_of, random_batch

from .common import CLASSES, small


class CriterionBattery:
    """The contract of a criterion: unweighted losses by name, and their weights."""

    name: str
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys."""
    supervises_all_layers = True

    def build(self, cfg: CfgNode) -> Any:
        """Build the criterion."""
        options = {"MODEL.MASK_FORMER.CRITERION_NAME": self.name, **self.options}
        return build_criterion(small(cfg, options))

    @pytest.mark.parametrize("counts", [(2, 3), (0, 1), (0, 0), (9, 2)], ids=str)
    def test_losses_and_gradients_are_finite_for_any_number_of_targets(
        self, cfg: CfgNode, counts: tuple[int, ...]
    ) -> None:
        outputs, targets = random_batch(seed=1, counts=counts, classes=CLASSES)
        layers = layers_of(outputs)
        for layer in layers:
            for name in ("pred_logits", "pred_masks"):
                layer[name].requires_grad_()
        losses = self.build(cfg)({**layers[-1], "aux_outputs": layers[:-1]}, targets)
        assert losses and all(loss.dim() == 0 and loss.isfinite() for loss in losses.values())
        torch.stack(list(losses.values())).sum().backward()
        for layer in layers if self.supervises_all_layers else layers[-1:]:
            for name in ("pred_logits", "pred_masks"):
                assert layer[name].grad is not None and layer[name].grad.isfinite().all()

    def test_every_weight_belongs_to_a_loss(self, cfg: CfgNode) -> None:
        outputs, targets = random_batch(counts=(2,), classes=CLASSES)
        criterion = self.build(cfg)
        assert set(criterion.loss_weights) <= set(criterion(outputs, targets))
        assert all(weight >= 0 for weight in criterion.loss_weights.values())

    def test_the_losses_of_the_parts_of_a_batch_add_up_to_those_of_the_whole(
        self, cfg: CfgNode
    ) -> None:
        counts = (3, 0, 1)
        outputs, targets = random_batch(counts=counts, classes=CLASSES)
        criterion = self.build(cfg)
        whole = criterion(outputs, targets)
        total = dict.fromkeys(whole, 0.0)
        for image, target in enumerate(targets):
            part = [{k: v[image : image + 1] for k, v in at.items()} for at in layers_of(outputs)]
            of_part = {**part[-1], "aux_outputs": part[:-1]}
            found = criterion(of_part, [target], batch_counts=counts)
            total = {name: total[name] + found[name].item() for name in whole}
        expected = {name: value.item() for name, value in whole.items()}
        assert total == pytest.approx(expected, rel=1e-5)

    def test_the_order_of_the_images_is_irrelevant(self, cfg: CfgNode) -> None:
        outputs, targets = random_batch(counts=(1, 4), classes=CLASSES)
        layers = [{name: value.flip(0) for name, value in at.items()} for at in layers_of(outputs)]
        flipped = {**layers[-1], "aux_outputs": layers[:-1]}
        criterion = self.build(cfg)
        found, expected = criterion(flipped, targets[::-1]), criterion(outputs, targets)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
