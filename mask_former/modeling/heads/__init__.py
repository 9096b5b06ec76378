"""Heads: what comes after the backbone; detectron2's ``SEM_SEG_HEADS_REGISTRY``."""
