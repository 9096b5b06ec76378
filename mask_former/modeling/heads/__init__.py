"""Segmentation heads, in detectron2's ``SEM_SEG_HEADS_REGISTRY``."""
