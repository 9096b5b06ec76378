"""Backbones beside detectron2's own; detectron2's ``BACKBONE_REGISTRY``."""
