"""Heads, which follow the backbone: registered in detectron2's ``SEM_SEG_HEADS_REGISTRY``."""
