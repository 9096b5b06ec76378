"""Swin Transformer (arXiv 2103.14030): detectron2's, with the published names and settings."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor

__all__ = ["D2SwinTransformer"]

_STAGES = ("res2", "res3", "res4", "res5")


@BACKBONE_REGISTRY.register()
class D2SwinTransformer(SwinTransformer):
    """detectron2's ``SwinTransformer`` under ``MODEL.SWIN``; its maps are named res2 … res5."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        """
        Raises:
            KeyError: if ``MODEL.SWIN.OUT_FEATURES`` names a map that is not there.
        """
        swin = cfg.MODEL.SWIN
        unknown = set(swin.OUT_FEATURES) - set(_STAGES)
        if unknown:
            raise KeyError(
                f"MODEL.SWIN.OUT_FEATURES has {sorted(unknown)}; a Swin has {list(_STAGES)}."
            )
        super().__init__(
            pretrain_img_size=swin.PRETRAIN_IMG_SIZE,
            patch_size=swin.PATCH_SIZE,
            in_chans=input_shape.channels,
            embed_dim=swin.EMBED_DIM,
            depths=swin.DEPTHS,
            num_heads=swin.NUM_HEADS,
            window_size=swin.WINDOW_SIZE,
            mlp_ratio=swin.MLP_RATIO,
            qkv_bias=swin.QKV_BIAS,
            qk_scale=swin.QK_SCALE,
            drop_rate=swin.DROP_RATE,
            attn_drop_rate=swin.ATTN_DROP_RATE,
            drop_path_rate=swin.DROP_PATH_RATE,
            ape=swin.APE,
            patch_norm=swin.PATCH_NORM,
        )
        # All four stages are built, norms included, for the published weights have them all.
        self._out_features = list(swin.OUT_FEATURES)
        self._out_feature_strides = {
            name: swin.PATCH_SIZE * 2**stage for stage, name in enumerate(_STAGES)
        }
        self._out_feature_channels = dict(zip(_STAGES, self.num_features, strict=True))

    @property
    def size_divisibility(self) -> int:
        return self._out_feature_strides[_STAGES[-1]]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """B×3×H×W to maps of strides 4, 8, 16, 32 by name."""
        maps = dict(zip(_STAGES, super().forward(x).values(), strict=True))
        return {name: maps[name] for name in self._out_features}
