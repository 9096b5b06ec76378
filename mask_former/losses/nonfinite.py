"""Numbers that are NaN or infinite: the error that stops training, or the mending of costs."""

from __future__ import annotations

import numpy as np

__all__ = ["ON_NONFINITE", "NonFiniteError", "mend_costs"]

ON_NONFINITE = ("raise", "sanitize")
"""What to do about matching costs that are NaN or infinite."""


class NonFiniteError(FloatingPointError, ValueError):
    """A loss or a matching cost is NaN or infinite, so the step would teach the model nothing.

    It is both what detectron2 raises (``FloatingPointError``) and what wrong values are.
    """

    def __init__(self, message: str, *, image: int | None = None) -> None:
        """Args: ``image`` is the number of the image in its batch, where one is to blame."""
        super().__init__(message)
        self.image = image


def mend_costs(costs: np.ndarray) -> int:
    """Replace, in place, what is not finite by more than any other cost: it is chosen last.

    Returns:
        How many costs were replaced.
    """
    broken = ~np.isfinite(costs)
    worst = costs[~broken].max(initial=0.0)
    costs[broken] = min(2 * float(worst) + 1, float(np.finfo(costs.dtype).max))
    return int(broken.sum())
