"""Conversion from and to checkpoints of Hugging Face's ``transformers``, without that library.

Names in this folder: ``ours`` is this project's, ``theirs`` is transformers'.
"""

from __future__ import annotations

from .exporting import to_huggingface_config, to_huggingface_processor
from .families import TITLES
from .importing import ConvertedCheckpoint, read_huggingface_folder, settings_from_huggingface
from .names import from_huggingface_names, to_huggingface_names

__all__ = [
    "TITLES",
    "ConvertedCheckpoint",
    "from_huggingface_names",
    "read_huggingface_folder",
    "settings_from_huggingface",
    "to_huggingface_config",
    "to_huggingface_names",
    "to_huggingface_processor",
]
