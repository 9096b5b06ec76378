"""Tests that every matcher passes."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from detectron2.config import CfgNode

from mask_former.losses import build_matcher
from tests.helpers.core_cases import layers_of, pairs_of, random_batch

from .common import small

COUNTS = [(2, 3), (0, 1), (0, 0), (9, 2)]  # 9: more than the queries of random_batch


class MatcherBattery:
    """The contract of a matcher: one-to-one (query, target) pairs of each image."""

    name: str
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys."""

    def build(self, cfg: CfgNode) -> Any:
        """Build the matcher."""
        return build_matcher(
            small(cfg, {"MODEL.MASK_FORMER.MATCHER.NAME": self.name, **self.options})
        )

    @pytest.mark.parametrize("counts", COUNTS, ids=str)
    def test_a_match_is_a_pair_of_index_tensors_without_repetition(
        self, cfg: CfgNode, counts: tuple[int, ...]
    ) -> None:
        outputs, targets = random_batch(seed=3, counts=counts)
        num_queries = outputs["pred_logits"].shape[1]
        for match, count in zip(self.build(cfg)(outputs, targets), counts, strict=True):
            assert all(part.dtype == torch.int64 and part.device.type == "cpu" for part in match)
            assert len(match.queries) == len(match.targets) <= min(num_queries, count)
            assert match.queries.tolist() == sorted(set(match.queries.tolist()))
            assert len(set(match.targets.tolist())) == len(match.targets)
            assert set(match.targets.tolist()) <= set(range(count))
            assert set(match.queries.tolist()) <= set(range(num_queries))

    def test_matching_layers_together_is_matching_each_alone(self, cfg: CfgNode) -> None:
        outputs, targets = random_batch(seed=4, counts=(3, 1))
        matcher, layers = self.build(cfg), layers_of(outputs)
        together = matcher.match_layers(layers, targets)
        for layer, found in zip(layers, together, strict=True):
            assert [pairs_of(one) for one in found] == [
                pairs_of(one) for one in matcher(layer, targets)
            ]

    def test_permuting_queries_permutes_the_match(self, cfg: CfgNode) -> None:
        outputs, targets = random_batch(seed=5, counts=(3,))
        order = torch.randperm(outputs["pred_logits"].shape[1], generator=torch.Generator())
        permuted = {name: outputs[name][:, order] for name in ("pred_logits", "pred_masks")}
        (before,), (after,) = (self.build(cfg)(one, targets) for one in (outputs, permuted))
        expected = {(query, target) for query, target in pairs_of(before)}
        assert {(int(order[query]), target) for query, target in pairs_of(after)} == expected

    def test_matches_require_no_gradient(self, cfg: CfgNode) -> None:
        outputs, targets = random_batch(counts=(2,))
        for name in ("pred_logits", "pred_masks"):
            outputs[name].requires_grad_()
        (match,) = self.build(cfg)(outputs, targets)
        assert not any(part.requires_grad for part in match)
