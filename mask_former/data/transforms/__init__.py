"""Augmentations and crops for training, and preprocessing for inference."""
