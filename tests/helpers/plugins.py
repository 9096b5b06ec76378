"""An example of a plug-in outside the package, and removal of plug-ins after a test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from mask_former import registries

ALL_REGISTRIES = (
    META_ARCH_REGISTRY,
    BACKBONE_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
    registries.TRANSFORMER_DECODER_REGISTRY,
    registries.CRITERION_REGISTRY,
    registries.MATCHER_REGISTRY,
    registries.LOSS_REGISTRY,
    registries.DATASET_MAPPER_REGISTRY,
)

FINEST_MAP_DECODER = '''
from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY

from mask_former.modeling.pixel_decoder.base import PixelDecoder
from mask_former.structures import PixelFeatures


def add_config(cfg):
    cfg.MODEL.FINEST_MAP = CfgNode({"KERNEL": 3})


@SEM_SEG_HEADS_REGISTRY.register()
class FinestMapDecoder(PixelDecoder):
    """A convolution of the finest map."""

    @configurable
    def __init__(self, input_shape, *, kernel, mask_dim):
        super().__init__()
        self.finest = min(input_shape, key=lambda name: input_shape[name].stride)
        self.shape = ShapeSpec(channels=mask_dim, stride=input_shape[self.finest].stride)
        channels = input_shape[self.finest].channels
        self.mask_features = Conv2d(channels, mask_dim, kernel, padding=kernel // 2)

    @classmethod
    def from_config(cls, cfg, input_shape):
        kernel, mask_dim = cfg.MODEL.FINEST_MAP.KERNEL, cfg.MODEL.SEM_SEG_HEAD.MASK_DIM
        return {"input_shape": input_shape, "kernel": kernel, "mask_dim": mask_dim}

    def output_shape(self):
        return {"mask_features": self.shape}

    def forward_features(self, features):
        return PixelFeatures(self.mask_features(features[self.finest]))
'''
"""The content of a plug-in file with a pixel decoder that has its own config key."""


@contextmanager
def forgetting_plugins() -> Iterator[None]:
    """Remove what plug-ins registered inside the ``with`` block when it ends."""
    entries = [dict(registry) for registry in ALL_REGISTRIES]
    datasets, modules = set(DatasetCatalog), set(sys.modules)
    loaded = dict(registries._LOADED)
    try:
        yield
    finally:
        for registry, before in zip(ALL_REGISTRIES, entries, strict=True):
            for name in set(dict(registry)) - set(before):
                registry._obj_map.pop(name)
        for name in set(DatasetCatalog) - datasets:
            DatasetCatalog.pop(name)
            MetadataCatalog.pop(name, None)
        for name in set(sys.modules) - modules:
            if name.startswith("mask_former_plugin"):
                sys.modules.pop(name)
        registries._LOADED.clear()
        registries._LOADED.update(loaded)
