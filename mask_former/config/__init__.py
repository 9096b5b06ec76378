"""Config: its keys, their validation, and reading and saving config files."""

from .keys import add_mask_former_config, get_mask_former_cfg
from .loading import load_cfg
from .validation import validate

__all__ = ["add_mask_former_config", "get_mask_former_cfg", "load_cfg", "validate"]
