"""A custom matcher: repeatedly match the cheapest pair of those that remain.

Put it into mask_former/losses/, or anywhere else and pass ``--plugin greedy_matcher.py``.
"""

from __future__ import annotations

import numpy as np
import torch

from mask_former.losses import HungarianMatcher
from mask_former.registries import MATCHER_REGISTRY
from mask_former.structures import Match


@MATCHER_REGISTRY.register()
class GreedyMatcher(HungarianMatcher):
    """A matcher with the costs of the base class and another assignment."""

    def assign(self, cost: np.ndarray) -> Match:
        """Assign a Q×N cost matrix greedily."""
        remaining = cost.copy()
        pairs = []
        for _ in range(min(cost.shape)):
            query, target = np.unravel_index(remaining.argmin(), remaining.shape)
            pairs.append((int(query), int(target)))
            remaining[query, :] = remaining[:, target] = np.inf
        queries, targets = zip(*sorted(pairs), strict=True) if pairs else ((), ())
        as_index = {"dtype": torch.int64}
        return Match(torch.tensor(queries, **as_index), torch.tensor(targets, **as_index))
