"""A custom transformer decoder: each layer is just one cross-attention.

Put it into mask_former/modeling/transformer_decoder/, or anywhere else and pass
``--plugin attention_decoder.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d
from torch import Tensor, nn

from mask_former.layers import MLP
from mask_former.modeling.transformer_decoder.base import TransformerDecoder
from mask_former.registries import TRANSFORMER_DECODER_REGISTRY
from mask_former.structures import Prediction


@TRANSFORMER_DECODER_REGISTRY.register()
class AttentionDecoder(TransformerDecoder):
    """A decoder defines ``decode``; fine-tuning expects ``class_embed`` and ``query_embed``."""

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        num_queries: int,
        dim: int,
        mask_dim: int,
        layers: int,
        heads: int,
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.deep_supervision = deep_supervision
        self.input_proj = Conv2d(in_channels, dim, kernel_size=1)
        self.query_embed = nn.Embedding(num_queries, dim)
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(layers)
        )
        self.class_embed = nn.Linear(dim, num_classes + 1)
        self.mask_embed = MLP(dim, dim, mask_dim, 3)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True
    ) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "dim": node.HIDDEN_DIM,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "layers": node.DEC_LAYERS,
            "heads": node.NHEADS,
            "deep_supervision": node.DEEP_SUPERVISION,
        }

    def decode(
        self, maps: tuple[Tensor, ...], mask_features: Tensor, *, all_layers: bool
    ) -> list[Prediction]:
        """Attend to one map B×in_channels×h×w; predict after each layer or after the last."""
        memory = self.input_proj(maps[0]).flatten(2).transpose(1, 2)  # B×hw×C
        queries = self.query_embed.weight.expand(len(memory), -1, -1)  # B×Q×C
        predictions = []
        for index, attention in enumerate(self.layers):
            queries = queries + attention(queries, memory, memory, need_weights=False)[0]
            if all_layers or index == len(self.layers) - 1:
                predictions.append(self._predict(queries, mask_features))
        return predictions

    def _predict(self, queries: Tensor, mask_features: Tensor) -> Prediction:
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(queries), mask_features)
        return {"pred_logits": self.class_embed(queries), "pred_masks": masks, "queries": queries}
