"""Tests that every transformer decoder passes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor

from mask_former.modeling import all_predictions, last_prediction
from mask_former.modeling.transformer_decoder.base import build_transformer_decoder
from mask_former.structures import layer_predictions

from .common import CLASSES, HIDDEN, MASK_DIM, QUERIES, run_backward, small, without_gradient


class TransformerDecoderBattery:
    """The contract of ``decode``, ``forward`` and ``parameter_rows``."""

    name: str
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys."""
    num_maps = 1
    """The number of feature maps that the queries attend to, coarse to fine."""

    def build(self, cfg: CfgNode) -> Any:
        """Build the decoder."""
        key = "MODEL.MASK_FORMER.TRANSFORMER_DECODER_NAME"
        torch.manual_seed(0)
        return build_transformer_decoder(small(cfg, {key: self.name, **self.options}), HIDDEN)

    def inputs(self, batch: int = 2) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return the feature maps, B×HIDDEN×h×w each, and mask features B×MASK_DIM×24×40."""
        g = torch.Generator().manual_seed(1)
        maps = tuple(
            torch.randn(batch, HIDDEN, 3 * 2**i, 5 * 2**i, generator=g)
            for i in range(self.num_maps)
        )
        return maps, torch.randn(batch, MASK_DIM, 24, 40, generator=g)

    def test_predictions_have_the_documented_shapes(self, cfg: CfgNode) -> None:
        decoder = self.build(cfg).eval()
        every = decoder.decode(*self.inputs(), all_layers=True)
        (last,) = decoder.decode(*self.inputs(), all_layers=False)
        for prediction in [*every, last]:
            assert tuple(prediction["pred_logits"].shape) == (2, QUERIES, CLASSES + 1)
            assert tuple(prediction["pred_masks"].shape) == (2, QUERIES, 24, 40)
        torch.testing.assert_close(last["pred_masks"], every[-1]["pred_masks"])

    @pytest.mark.parametrize("deep_supervision", [True, False])
    def test_all_layers_predictions_are_returned_only_with_deep_supervision(
        self, cfg: CfgNode, deep_supervision: bool
    ) -> None:
        cfg.MODEL.MASK_FORMER.DEEP_SUPERVISION = deep_supervision
        decoder = self.build(cfg).train()
        every = len(decoder.decode(*self.inputs(), all_layers=True))
        expected = every if deep_supervision else 1
        assert len(layer_predictions(decoder(*self.inputs()))) == expected
        decoder.eval()
        with last_prediction(decoder):
            assert len(layer_predictions(decoder(*self.inputs()))) == 1
            with all_predictions(decoder):
                assert len(layer_predictions(decoder(*self.inputs()))) == expected
        by_default = expected if decoder.ALL_BY_DEFAULT else 1
        assert len(layer_predictions(decoder(*self.inputs()))) == by_default

    def test_every_map_and_every_parameter_gets_a_gradient(self, cfg: CfgNode) -> None:
        decoder = self.build(cfg).train()
        maps, mask_features = self.inputs()
        inputs = [value.requires_grad_() for value in (*maps, mask_features)]
        every = decoder.decode(maps, mask_features, all_layers=True)
        run_backward([p[name] for p in every for name in ("pred_logits", "pred_masks")])
        assert without_gradient(decoder, *inputs) == []

    def test_images_of_a_batch_do_not_affect_each_other(self, cfg: CfgNode) -> None:
        decoder = self.build(cfg).eval().double()
        maps, mask_features = self.inputs(batch=3)
        maps, mask_features = tuple(one.double() for one in maps), mask_features.double()
        with torch.no_grad():
            together = decoder(maps, mask_features)
            alone = decoder(tuple(one[1:2] for one in maps), mask_features[1:2])
        for name in ("pred_logits", "pred_masks"):
            torch.testing.assert_close(alone[name], together[name][1:2])

    def test_parameter_rows_have_one_row_per_class_or_query(self, cfg: CfgNode) -> None:
        decoder = self.build(cfg)
        rows, state = decoder.parameter_rows(), decoder.state_dict()
        assert {name: len(state[name]) - more for name, more in rows.classes.items()} == (
            dict.fromkeys(rows.classes, CLASSES)
        )
        assert {len(state[name]) for name in rows.queries} <= {QUERIES}
