"""The paper's transformer module (section 3.3), which turns queries into classes and masks."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from mask_former.layers import MLP, Transformer
from mask_former.registries import TRANSFORMER_DECODER_REGISTRY
from mask_former.structures import Prediction

from .base import TransformerDecoder, input_projection, make_predictions

__all__ = ["TransformerPredictor"]


@TRANSFORMER_DECODER_REGISTRY.register()
class TransformerPredictor(TransformerDecoder):
    """DETR's decoder, a linear class layer, and an MLP that turns each query into a mask kernel."""

    @configurable
    def __init__(
        self,
        in_channels: int,
        mask_classification: bool = True,
        *,
        num_classes: int,
        hidden_dim: int,
        num_queries: int,
        heads: int,
        dropout: float,
        feedforward_dim: int,
        encoder_layers: int,
        decoder_layers: int,
        pre_norm: bool,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_proj: bool,
    ) -> None:
        """Create the decoder and its prediction layers.

        Args:
            in_channels: channels of the map that queries attend to.
            mask_classification: predict a class for each query; otherwise only masks.
            num_classes: K, without "no object".
            hidden_dim: width of the transformer.
            num_queries: Q.
            heads, dropout, feedforward_dim, encoder_layers, decoder_layers, pre_norm: see
                :class:`~mask_former.layers.Transformer`.
            deep_supervision: in training, predict from every decoder layer.
            mask_dim: channels of the per-pixel embeddings.
            enforce_input_proj: project the map even if it has ``hidden_dim`` channels.
        """
        super().__init__()
        self.transformer = Transformer(
            encoder_layers=encoder_layers,
            decoder_layers=decoder_layers,
            dim=hidden_dim,
            heads=heads,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pre_norm=pre_norm,
        )
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.input_proj = input_projection(in_channels, hidden_dim, enforce_input_proj)
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1) if mask_classification else None
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.deep_supervision = deep_supervision

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True
    ) -> dict[str, Any]:
        mask_former = cfg.MODEL.MASK_FORMER
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": mask_former.HIDDEN_DIM,
            "num_queries": mask_former.NUM_OBJECT_QUERIES,
            "heads": mask_former.NHEADS,
            "dropout": mask_former.DROPOUT,
            "feedforward_dim": mask_former.DIM_FEEDFORWARD,
            "encoder_layers": mask_former.ENC_LAYERS,
            "decoder_layers": mask_former.DEC_LAYERS,
            "pre_norm": mask_former.PRE_NORM,
            "deep_supervision": mask_former.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_proj": mask_former.ENFORCE_INPUT_PROJ,
        }

    def decode(
        self, maps: tuple[Tensor, ...], mask_features: Tensor, *, all_layers: bool
    ) -> list[Prediction]:
        """Predict a set of masks; queries attend to one map B×in_channels×h_n×w_n."""
        self.check_maps(maps)
        (feature_map,) = maps
        # L×B×Q×C: the state of the queries after each layer, normalised
        states = self.transformer(self.input_proj(feature_map), self.query_embed.weight)
        if not all_layers:
            states = states[-1:]
        return make_predictions(states, self.mask_embed(states), mask_features, self.class_embed)
