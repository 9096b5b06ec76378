"""Tests that every mask-classification head passes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_sem_seg_head

from mask_former.structures import layer_predictions

from .common import CLASSES, SHAPES, make_features, run_backward, small, without_gradient


class HeadBattery:
    """The contract of a head: its outputs, ``num_classes`` and ``parameter_rows()``."""

    name: str
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys."""
    maps: tuple[str, ...] = tuple(SHAPES)
    """The names of the feature maps that it uses."""

    def build(self, cfg: CfgNode) -> Any:
        """Build the head."""
        torch.manual_seed(0)
        options = {"MODEL.SEM_SEG_HEAD.NAME": self.name, **self.options}
        return build_sem_seg_head(small(cfg, options), SHAPES)

    def test_outputs_have_the_documented_shapes(self, cfg: CfgNode) -> None:
        head = self.build(cfg).train()
        for prediction in layer_predictions(head(make_features())):
            batch, queries, classes = prediction["pred_logits"].shape
            assert (batch, classes) == (2, CLASSES + 1)
            assert tuple(prediction["pred_masks"].shape) == (2, queries, 16, 16)
        assert head.num_classes == CLASSES

    def test_every_map_and_every_parameter_gets_a_gradient(self, cfg: CfgNode) -> None:
        head = self.build(cfg).train()
        features = {name: value.requires_grad_() for name, value in make_features().items()}
        predictions = layer_predictions(head(features))
        run_backward([p[name] for p in predictions for name in ("pred_logits", "pred_masks")])
        assert without_gradient(head, *(features[name] for name in self.maps)) == []

    def test_images_of_a_batch_do_not_affect_each_other(self, cfg: CfgNode) -> None:
        head = self.build(cfg).eval().double()
        features = {name: value.double() for name, value in make_features(batch=3).items()}
        with torch.no_grad():
            together = head(features)
            alone = head({name: value[1:2] for name, value in features.items()})
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(alone[name], together[name][1:2])

    def test_parameter_rows_have_one_row_per_class(self, cfg: CfgNode) -> None:
        head = self.build(cfg)
        rows, state = head.parameter_rows(), head.state_dict()
        found = {name: len(state[name]) - more for name, more in rows.classes.items()}
        assert found == dict.fromkeys(rows.classes, CLASSES)
        assert set(rows.queries) <= set(state)
