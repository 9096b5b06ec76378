"""Mask2Former's transformer decoder (arXiv 2112.01527, section 3.2): masked attention."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from torch import Tensor, nn

from mask_former.layers import MLP, Attention, FeedForward, position_of_cells
from mask_former.ops import attended_cells, level_features
from mask_former.registries import TRANSFORMER_DECODER_REGISTRY
from mask_former.structures import Prediction, Size

from .base import TransformerDecoder, input_projection, make_predictions

__all__ = ["MultiScaleMaskedTransformerDecoder"]


class _CrossAttention(nn.Module):
    """Attention of the queries to the cells inside their own masks, and a norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, query_position: Tensor, keys: Tensor, memory: Tensor, attended: Tensor
    ) -> Tensor:
        """Update the queries B×Q×C; see :class:`~mask_former.layers.Attention`."""
        return self.norm(x + self.multihead_attn(x + query_position, keys, memory, attended))


class _SelfAttention(nn.Module):
    """Attention among the queries, and a norm."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(dim, heads)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, query_position: Tensor) -> Tensor:
        """Update the queries B×Q×C."""
        with_position = x + query_position
        return self.norm(x + self.self_attn(with_position, with_position, x))


class _FeedForwardBlock(FeedForward):
    """Feed-forward network with a norm."""

    def __init__(self, dim: int, feedforward_dim: int) -> None:
        super().__init__(dim, feedforward_dim, dropout=0.0)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """Update the queries B×Q×C."""
        return self.norm(x + self.feed_forward(x))


@TRANSFORMER_DECODER_REGISTRY.register()
class MultiScaleMaskedTransformerDecoder(TransformerDecoder):
    """Queries that attend to several maps in turn, each only inside the mask it has predicted.

    Layer j attends to map j mod 3, coarse to fine. There is a prediction before the first layer,
    from the learned queries alone, and one after each layer; each one's masks limit the attention
    of the next layer.
    """

    # As in the published code, whose callers read aux_outputs in evaluation, too.
    ALL_BY_DEFAULT = True
    QUERY_PARAMETERS = ("query_feat.weight", "query_embed.weight")
    LEVELS = 3

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
        feedforward_dim: int,
        layers: int,
        deep_supervision: bool,
        mask_dim: int,
        enforce_input_proj: bool,
        reference_ops: bool = False,
    ) -> None:
        """Create the layers.

        Args:
            in_channels: channels of the maps.
            mask_classification: predict a class for each query; otherwise only masks.
            num_classes: K, without "no object".
            hidden_dim: width in channels, a multiple of ``heads``.
            num_queries: Q.
            heads: attention heads.
            feedforward_dim: hidden channels of the feed-forward networks.
            layers: number of layers, 0 or more; there is one more prediction.
            deep_supervision: in training, return all predictions.
            mask_dim: channels of the per-pixel embeddings.
            enforce_input_proj: project the maps even if they have ``hidden_dim`` channels.
            reference_ops: run the reference version of the kernel; see
                :mod:`mask_former.ops.attended_cells`.
        """
        super().__init__()
        self.transformer_cross_attention_layers = nn.ModuleList(
            _CrossAttention(hidden_dim, heads) for _ in range(layers)
        )
        self.transformer_self_attention_layers = nn.ModuleList(
            _SelfAttention(hidden_dim, heads) for _ in range(layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            _FeedForwardBlock(hidden_dim, feedforward_dim) for _ in range(layers)
        )
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(self.LEVELS, hidden_dim)
        self.input_proj = nn.ModuleList(
            input_projection(in_channels, hidden_dim, enforce_input_proj)
            for _ in range(self.LEVELS)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1) if mask_classification else None
        self.mask_embed = MLP(hidden_dim, hidden_dim, mask_dim, 3)
        self.deep_supervision = deep_supervision
        self.reference_ops = reference_ops

    @classmethod
    def from_config(
        cls, cfg: CfgNode, in_channels: int, mask_classification: bool = True
    ) -> dict[str, Any]:
        node = cfg.MODEL.MASK_FORMER
        _check(cfg)
        return {
            "in_channels": in_channels,
            "mask_classification": mask_classification,
            "num_classes": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            "hidden_dim": node.HIDDEN_DIM,
            "num_queries": node.NUM_OBJECT_QUERIES,
            "heads": node.NHEADS,
            "feedforward_dim": node.DIM_FEEDFORWARD,
            "layers": node.DEC_LAYERS - 1,
            "deep_supervision": node.DEEP_SUPERVISION,
            "mask_dim": cfg.MODEL.SEM_SEG_HEAD.MASK_DIM,
            "enforce_input_proj": node.ENFORCE_INPUT_PROJ,
            "reference_ops": cfg.MODEL.REFERENCE_OPS,
        }

    def decode(
        self, maps: tuple[Tensor, ...], mask_features: Tensor, *, all_layers: bool
    ) -> list[Prediction]:
        """Predict a set of masks; queries attend to three maps B×in_channels×h_i×w_i."""
        self.check_maps(maps)
        memories = [self._memory(level, feature_map) for level, feature_map in enumerate(maps)]
        sizes = [(feature_map.shape[-2], feature_map.shape[-1]) for feature_map in maps]
        states, kernels = self._run(memories, sizes, mask_features)
        if not all_layers:
            states, kernels = states[-1:], kernels[-1:]
        return make_predictions(
            torch.stack(states), torch.stack(kernels), mask_features, self.class_embed
        )

    def _memory(self, level: int, feature_map: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values of the cells of a map: B×S×C each, S = h_i·w_i."""
        projected = self.input_proj[level](feature_map)
        # unlike in the pixel decoder, the level's embedding is part of the values, too
        values = projected.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return values + position_of_cells(projected), values

    def _run(
        self,
        memories: list[tuple[Tensor, Tensor]],
        sizes: list[Size],
        mask_features: Tensor,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Run the layers.

        Returns:
            The normalised states of the queries, B×Q×C, and the kernels of their masks,
            B×Q×MASK_DIM: before the first layer and after each.
        """
        if self.reference_ops:
            features = [mask_features] * self.LEVELS
        else:
            features = level_features(mask_features, sizes)
        query_position = self.query_embed.weight[None]
        x = self.query_feat.weight[None].expand(mask_features.shape[0], -1, -1)
        states = [self.decoder_norm(x)]
        kernels = [self.mask_embed(states[0])]
        for index, (cross, own, feed_forward) in enumerate(
            zip(
                self.transformer_cross_attention_layers,
                self.transformer_self_attention_layers,
                self.transformer_ffn_layers,
                strict=True,
            )
        ):
            level = index % self.LEVELS
            attended = attended_cells(kernels[-1], features[level], sizes[level])
            x = feed_forward(
                own(cross(x, query_position, *memories[level], attended), query_position)
            )
            states.append(self.decoder_norm(x))
            kernels.append(self.mask_embed(states[-1]))
        return states, kernels


def _check(cfg: CfgNode) -> None:
    """Refuse values that this decoder does not support."""
    node = cfg.MODEL.MASK_FORMER
    name = MultiScaleMaskedTransformerDecoder.__name__
    if node.PRE_NORM:
        raise ValueError(
            f"MODEL.MASK_FORMER.PRE_NORM is True, but {name} normalises the output of each block, "
            "as the published models do: set it to False."
        )
    if node.DEC_LAYERS < 1:
        raise ValueError(
            f"MODEL.MASK_FORMER.DEC_LAYERS is {node.DEC_LAYERS}; {name} needs 1 or more: the "
            "number of predictions, one more than that of layers."
        )
    if node.HIDDEN_DIM % node.NHEADS:
        raise ValueError(
            f"MODEL.MASK_FORMER.HIDDEN_DIM is {node.HIDDEN_DIM}, not a multiple of NHEADS, "
            f"{node.NHEADS}: change one of them."
        )
