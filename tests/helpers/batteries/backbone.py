"""Tests that every backbone passes."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from .common import run_backward, small, without_gradient


class BackboneBattery:
    """The contract of a backbone: feature maps with the names, channels and strides it reports."""

    name: str
    options: ClassVar[dict[str, Any]] = {}
    """Values of other config keys, such as those that make it small."""
    fixed: tuple[str, ...] = ()
    """Prefixes of the names of parameters that are not trained."""

    def build(self, cfg: CfgNode) -> Any:
        """Build the backbone in evaluation mode."""
        options = {"MODEL.BACKBONE.FREEZE_AT": 0, "MODEL.BACKBONE.NAME": self.name, **self.options}
        torch.manual_seed(0)
        return build_backbone(small(cfg, options), ShapeSpec(channels=3)).eval()

    def test_maps_have_the_stated_names_channels_and_strides(self, cfg: CfgNode) -> None:
        backbone = self.build(cfg)
        step = max(32, backbone.size_divisibility)
        height, width = 2 * step, 3 * step
        stated = backbone.output_shape()
        maps = backbone(torch.randn(2, 3, height, width))
        assert set(maps) == set(stated)
        for name, shape in stated.items():
            size = (height // shape.stride, width // shape.stride)
            assert tuple(maps[name].shape) == (2, shape.channels, *size), name

    def test_every_parameter_gets_a_gradient(self, cfg: CfgNode) -> None:
        backbone = self.build(cfg)
        run_backward(list(backbone(torch.randn(1, 3, 64, 64)).values()))
        unused = without_gradient(backbone)
        assert [name for name in unused if not name.startswith(self.fixed or "\0")] == []

    def test_images_of_a_batch_do_not_affect_each_other(self, cfg: CfgNode) -> None:
        backbone = self.build(cfg).double()
        images = torch.randn(3, 3, 64, 64, dtype=torch.float64)
        with torch.no_grad():
            together, alone = backbone(images), backbone(images[1:2])
        for name, one in alone.items():
            torch.testing.assert_close(one, together[name][1:2])
