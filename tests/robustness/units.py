"""Units of work of the soak run, and their results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Found:
    """The result of a unit of work."""

    figures: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Unit:
    """Work that is either completed or repeated as a whole."""

    part: str
    name: str
    work: Callable[[Path], Found]
    """Function that does the work in an empty folder."""

    @property
    def key(self) -> str:
        return f"{self.part}: {self.name}"
