"""Overlays, labels, legends and contact sheets."""

from .overlay import Overlay, Region, draw, mask_overlay, panoptic_overlay, semantic_overlay

__all__ = ["Overlay", "Region", "draw", "mask_overlay", "panoptic_overlay", "semantic_overlay"]
