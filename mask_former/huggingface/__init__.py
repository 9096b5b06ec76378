"""Checkpoints of Hugging Face's ``transformers``, both ways, without that library."""

from __future__ import annotations

from .exporting import to_huggingface_config, to_huggingface_processor
from .importing import ConvertedCheckpoint, read_huggingface_folder, settings_from_huggingface
from .names import from_huggingface_names, to_huggingface_names

__all__ = [
    "ConvertedCheckpoint",
    "from_huggingface_names",
    "read_huggingface_folder",
    "settings_from_huggingface",
    "to_huggingface_config",
    "to_huggingface_names",
    "to_huggingface_processor",
]
