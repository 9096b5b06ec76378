"""Transformer decoders, one file each."""
