"""A custom backbone: four stages of convolutions with strides 4, 8, 16 and 32.

Put it into mask_former/modeling/backbone/, or anywhere else and pass
``--plugin conv_stages.py``.
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.config import CfgNode as CN
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn


def add_config(cfg: CfgNode) -> None:
    """Add the keys ``MODEL.CONV_STAGES.*``."""
    cfg.MODEL.CONV_STAGES = CN()
    cfg.MODEL.CONV_STAGES.WIDTH = 32  # channels of res2; each later stage has twice as many


@BACKBONE_REGISTRY.register()
class ConvStages(Backbone):
    """A backbone with the maps ``res2`` … ``res5``, which pixel decoders expect by default."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        width = cfg.MODEL.CONV_STAGES.WIDTH
        self.stem = _block(input_shape.channels, width)
        self.stages = nn.ModuleList()
        self._out_features = ["res2", "res3", "res4", "res5"]
        self._out_feature_strides = {f"res{n}": 2**n for n in (2, 3, 4, 5)}
        self._out_feature_channels = {f"res{n}": width * 2 ** (n - 2) for n in (2, 3, 4, 5)}
        channels = width
        for name in self._out_features:
            self.stages.append(_block(channels, self._out_feature_channels[name]))
            channels = self._out_feature_channels[name]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Compute maps B×C_i×H/stride×W/stride by name from normalised images B×3×H×W."""
        x = self.stem(x)
        maps = {}
        for name, stage in zip(self._out_features, self.stages, strict=True):
            x = stage(x)
            maps[name] = x
        return maps

    @property
    def size_divisibility(self) -> int:
        """The multiple that images are padded to if MASK_FORMER.SIZE_DIVISIBILITY is negative."""
        return 32


def _block(in_channels: int, out_channels: int) -> nn.Module:
    """Build a block that halves the size: 3×3 convolution with stride 2, group norm, ReLU."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=2,
        padding=1,
        bias=False,
        norm=get_norm("GN", out_channels),
        activation=nn.functional.relu,
    )
