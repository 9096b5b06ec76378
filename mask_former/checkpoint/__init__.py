"""Checkpoints: saving and loading, fine-tuning, and what inference needs of them."""
