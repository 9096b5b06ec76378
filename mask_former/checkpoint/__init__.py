"""Checkpoints: save, load, fine-tune, and the entries that inference reads."""
