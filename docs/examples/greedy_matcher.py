"""A custom matcher: the cheapest pair first, then the cheapest of those that are left.

As a plug-in it lies in mask_former/losses/, or anywhere with ``--plugin greedy_matcher.py``.
"""

from __future__ import annotations

import numpy as np
import torch

from mask_former.losses import HungarianMatcher
from mask_former.registries import MATCHER_REGISTRY
from mask_former.structures import Match


@MATCHER_REGISTRY.register()
class GreedyMatcher(HungarianMatcher):
    """Costs are those of the base class; only the assignment differs."""

    def assign(self, cost: np.ndarray) -> Match:
        """Assign a Q×N cost matrix greedily."""
        left = cost.copy()
        pairs = []
        for _ in range(min(cost.shape)):
            query, target = np.unravel_index(left.argmin(), left.shape)
            pairs.append((int(query), int(target)))
            left[query, :] = left[:, target] = np.inf
        queries, targets = zip(*sorted(pairs), strict=True) if pairs else ((), ())
        as_index = {"dtype": torch.int64}
        return Match(torch.tensor(queries, **as_index), torch.tensor(targets, **as_index))
