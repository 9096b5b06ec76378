"""Augmentations and crops."""
