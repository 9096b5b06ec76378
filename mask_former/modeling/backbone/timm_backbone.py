"""Any timm model that provides feature maps, as a detectron2 backbone."""

from __future__ import annotations

import difflib
import logging
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.config import CfgNode as CN
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from mask_former.utils.errors import short

from .timm_depthwise import speed_up_depthwise

__all__ = ["PREFIX", "TimmBackbone", "add_config", "build_timm_backbone"]

PREFIX = "body."
"""Prefix of timm's own parameter names in the backbone's state dict."""


def add_config(cfg: CfgNode) -> None:
    """Add the keys ``MODEL.TIMM.*``."""
    cfg.MODEL.TIMM = CN()
    cfg.MODEL.TIMM.NAME = ""  # timm's name of the model, such as "tf_efficientnet_lite0"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res2", "res3", "res4", "res5"]  # at strides 4, 8, 16, 32
    cfg.MODEL.TIMM.FREEZE_AT = 0  # n freezes all layers up to res<n>, norms included; 0: none
    cfg.MODEL.TIMM.DROP_PATH_RATE = 0.0  # stochastic depth, a probability


class TimmBackbone(Backbone):
    """A timm model that returns feature maps, named res2 … res5 at strides 4 … 32."""

    def __init__(
        self,
        name: str,
        *,
        in_channels: int = 3,
        out_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        freeze_at: int = 0,
        drop_path_rate: float = 0.0,
        reference_ops: bool = False,
    ) -> None:
        """Create the model with random weights.

        Args:
            name: timm's name of the model.
            in_channels: channels of the image.
            out_features: names of the maps to return.
            freeze_at: n freezes all layers up to the map ``res<n>``; 0 freezes nothing.
            drop_path_rate: probability of stochastic depth; not all models accept it.
            reference_ops: run torch's own depthwise convolutions.

        Raises:
            ImportError: if timm is not installed.
            ValueError: if timm does not know the model or cannot extract the feature maps.
        """
        super().__init__()
        options = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}
        self.body = _create(name, in_chans=in_channels, **options)
        if not reference_ops:
            speed_up_depthwise(self.body)
        info: Any = self.body.feature_info
        # Of several maps with the same stride, the last one is the deepest.
        self._index = {
            f"res{int(math.log2(stride))}": index
            for index, stride in enumerate(info.reduction())
            if math.log2(stride).is_integer()
        }
        self._channels_last = getattr(self.body, "output_fmt", None) == "NHWC"
        missing = [feature for feature in out_features if feature not in self._index]
        if missing:
            raise ValueError(
                f"MODEL.TIMM.OUT_FEATURES has {missing}, but the feature maps of {name} are "
                f"{sorted(self._index)} (strides {info.reduction()})."
            )
        self._out_features = list(out_features)
        self._out_feature_channels = {
            feature: info.channels()[index] for feature, index in self._index.items()
        }
        self._out_feature_strides = {
            feature: info.reduction()[index] for feature, index in self._index.items()
        }
        self._frozen = self._freeze(freeze_at)

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides[feature] for feature in self._out_features)

    def _freeze(self, freeze_at: int) -> list[nn.Module]:
        """Freeze all layers up to ``res<freeze_at>``; return those to keep in evaluation mode."""
        if not freeze_at:
            return []
        feature = f"res{freeze_at}"
        if feature not in self._index:
            raise ValueError(
                f"MODEL.TIMM.FREEZE_AT is {freeze_at}, but there is no {feature}: 0 freezes "
                f"nothing, and n freezes all layers up to res<n>, one of {sorted(self._index)}."
            )
        modules = dict(self.body.named_modules())
        last = self._module_of(feature, modules)
        # timm defines layers in the order in which they run.
        order = list(modules)
        end = max(i for i, name in enumerate(order) if f"{name}.".startswith(f"{last}."))
        ancestors = {last.rsplit(".", n)[0] for n in range(1, last.count(".") + 1)} | {""}
        frozen = []
        for name in order[: end + 1]:
            for parameter in modules[name].parameters(recurse=False):
                parameter.requires_grad_(False)
            if name not in ancestors:
                frozen.append(modules[name])
        return frozen

    def _module_of(self, feature: str, modules: dict[str, nn.Module]) -> str:
        """Find the name of the layer that outputs a map."""
        info: Any = self.body.feature_info
        name = info.module_name()[self._index[feature]]
        # To extract feature maps, timm flattens some models and wraps others.
        for known in (name, name.replace(".", "_"), f"model.{name}"):
            if known in modules:
                return known
        raise ValueError(
            f"MODEL.TIMM.FREEZE_AT: {type(self.body).__name__} has no layer {name!r}, the source "
            f"of {feature}, so it cannot be frozen up to there; set the key to 0 to freeze nothing."
        )

    def train(self, mode: bool = True) -> TimmBackbone:
        """Set the mode as usual, but keep frozen layers in evaluation mode."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute maps B×C_i×H/stride×W/stride by name from normalised B×3×H×W."""
        if x.device.type == "cpu":  # channels_last is faster there, as in MaskFormer
            x = x.contiguous(memory_format=torch.channels_last)
        maps = self.body(x)
        if self._channels_last:
            maps = [feature_map.permute(0, 3, 1, 2) for feature_map in maps]
        return {feature: maps[self._index[feature]] for feature in self._out_features}


def check_known(name: str, key: str) -> None:
    """Check that timm itself has a model; it also loads those of any folder or web page.

    Args:
        name: timm's name of the model.
        key: Where the name stands, for error messages.

    Raises:
        ImportError: If timm is missing.
        ValueError: If timm has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise ImportError("timm backbones need timm, which is missing: pip install timm") from error
    if not re.fullmatch(r"[\w.-]+", name) or not timm.is_model(name):
        near = difflib.get_close_matches(name[:100], timm.list_models(), n=5)
        hint = f"Did you mean one of {near}?" if near else "timm.list_models() lists them all."
        raise ValueError(
            f"{key} is {short(name)!r}, which is not one of timm {timm.__version__}'s own models; "
            f"other names could make it load any folder or web page. {hint}"
        )


def _create(name: str, **options: Any) -> nn.Module:
    """Create a model that returns feature maps."""
    check_known(name, "MODEL.TIMM.NAME")
    import timm

    try:
        return timm.create_model(name, features_only=True, pretrained=False, **options)
    except (RuntimeError, TypeError, AssertionError) as error:
        raise ValueError(f"timm cannot extract feature maps from {name!r}: {error}") from error


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the backbone that ``MODEL.TIMM`` describes; ``MODEL.WEIGHTS`` loads its weights."""
    timm_cfg = cfg.MODEL.TIMM
    logging.getLogger(__name__).debug("timm backbone %s", timm_cfg.NAME)
    return TimmBackbone(
        timm_cfg.NAME,
        in_channels=input_shape.channels,
        out_features=timm_cfg.OUT_FEATURES,
        freeze_at=timm_cfg.FREEZE_AT,
        drop_path_rate=timm_cfg.DROP_PATH_RATE,
        reference_ops=cfg.MODEL.REFERENCE_OPS,
    )
