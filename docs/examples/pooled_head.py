"""A custom head without attention: each output channel of a convolution is one mask.

Put it into mask_former/modeling/heads/, or anywhere else and pass ``--plugin pooled_head.py``.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from mask_former.structures import Outputs, ParameterRows


@SEM_SEG_HEADS_REGISTRY.register()
class PooledHead(nn.Module):
    """A head defines ``forward``, ``num_classes`` and ``parameter_rows``."""

    @configurable
    def __init__(
        self, input_shape: dict[str, ShapeSpec], *, num_classes: int, num_queries: int
    ) -> None:
        super().__init__()
        by_stride = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.finest, self.coarsest = by_stride[0], by_stride[-1]
        self.num_classes, self.num_queries = num_classes, num_queries
        in_channels = input_shape[self.finest].channels
        self.masks = Conv2d(in_channels, num_queries, kernel_size=3, padding=1)
        self.embed = nn.Linear(input_shape[self.coarsest].channels, num_queries * 16)
        self.classes = nn.Linear(16, num_classes + 1)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "num_queries": cfg.MODEL.MASK_FORMER.NUM_OBJECT_QUERIES,
        }

    def forward(self, features: dict[str, Tensor]) -> Outputs:
        """Predict a set of masks with one class each from backbone maps B×C_i×h_i×w_i by name."""
        pooled = features[self.coarsest].mean((2, 3))
        queries = self.embed(pooled).unflatten(1, (self.num_queries, -1))  # B×Q×16
        return {
            "pred_logits": self.classes(queries),
            "pred_masks": self.masks(features[self.finest]),
            "aux_outputs": [],
        }

    def parameter_rows(self) -> ParameterRows:
        """Name the parameters with one row for each class, then one for "no object"."""
        return ParameterRows({"classes.weight": 1, "classes.bias": 1})
