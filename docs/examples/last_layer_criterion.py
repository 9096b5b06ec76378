"""A custom criterion: supervise only the last prediction and ignore the earlier ones.

Put it into mask_former/losses/, or anywhere else and pass ``--plugin last_layer_criterion.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mask_former.losses import SetCriterion
from mask_former.registries import CRITERION_REGISTRY
from mask_former.structures import Outputs, Target


@CRITERION_REGISTRY.register()
class LastLayerCriterion(SetCriterion):
    """A criterion defines ``forward`` and ``loss_weights``, which the base class has here."""

    def forward(
        self,
        outputs: Outputs,
        targets: Sequence[Target],
        *,
        batch_counts: Sequence[int] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the unweighted losses of the last prediction by name."""
        last: Outputs = {**outputs, "aux_outputs": []}
        return super().forward(last, targets, batch_counts=batch_counts)
