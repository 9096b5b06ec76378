"""Non-finite numbers: the error that stops training, and sanitized matching costs."""

from __future__ import annotations

import numpy as np

__all__ = ["ON_NONFINITE", "NonFiniteError", "sanitize_costs"]

ON_NONFINITE = ("raise", "sanitize")
"""Values of ``MATCHER.ON_NONFINITE``: treatments of costs that are NaN or infinite."""


class NonFiniteError(FloatingPointError, ValueError):
    """A loss or a matching cost is NaN or infinite, so the step would only harm the model.

    It is a ``FloatingPointError``, which detectron2 raises, and a ``ValueError``.
    """

    def __init__(self, message: str, *, image: int | None = None) -> None:
        """Create the error; ``image`` is the batch index of the image that caused it, if known."""
        super().__init__(message)
        self.image = image


def sanitize_costs(costs: np.ndarray) -> int:
    """Replace non-finite costs, in place, by a value above all others, so they are chosen last.

    Returns:
        The number of costs that were replaced.
    """
    broken = ~np.isfinite(costs)
    worst = costs[~broken].max(initial=0.0)
    costs[broken] = min(2 * float(worst) + 1, float(np.finfo(costs.dtype).max))
    return int(broken.sum())
