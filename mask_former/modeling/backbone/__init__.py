"""Backbones in addition to detectron2's own, in its ``BACKBONE_REGISTRY``."""
