"""A model that both libraries have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from . import tables
from .name_table import NameTable
from .tables import Need, Value

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """The names and settings of a model, ours and theirs."""

    name: str
    """The name in messages."""
    model_type: str
    """``model_type`` of ``config.json``."""
    architecture: str
    """Their class of the model with its heads."""
    names: NameTable
    unused_norm: str
    """Their name for the last norm of a Swin, which nothing reads and ours lacks."""
    unsaved: tuple[str, ...]
    """Last words of names of ours that theirs does not save."""
    values: tuple[Value, ...]
    """Settings of the heads that both have."""
    theirs_needed: tuple[Need, ...]
    """Settings of theirs, of which ours supports some values."""
    ours_needed: tuple[Need, ...]
    """Settings of ours, of which theirs supports some values."""
    their_swin_needed: tuple[Need, ...] = tables.THEIR_SWIN_NEEDED
    our_swin_needed: tuple[Need, ...] = tables.OUR_SWIN_NEEDED
    copies: Mapping[str, str] = field(default_factory=dict)
    """Further settings of theirs, and the setting of ours whose value they get."""
    their_settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of theirs, with their values."""
    our_settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of ours, with their values; their files lack them."""
