"""Limits of the page, each with its default and its option of the command line."""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass, field, fields
from typing import Any

from mask_former.cli.options import positive

__all__ = ["GIGA", "MEGA", "Limits"]

MEGA = 1_000_000
GIGA = 1_000_000_000


def _limit(default: float, option: str, text: str) -> Any:
    return field(default=default, metadata={"option": option, "help": f"{text} (%(default)s)"})


def _amount(text: str) -> float:
    """Parse a number above 0, for argparse."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


@dataclass(frozen=True)
class Limits:
    """Limits on uploads, on memory and on each client: one address, or one IPv6 network (/64)."""

    megapixels: float = _limit(
        50, "--max-megapixels", "largest image or frame, in millions of pixels"
    )
    frames: int = _limit(
        300, "--max-frames", "number of frames of a video that are drawn; later ones are left out"
    )
    seconds: float = _limit(
        300, "--max-seconds", "time for drawing a video or for receiving an upload, in seconds"
    )
    upload_mb: float = _limit(200, "--max-upload", "largest file, in MB")
    disk_gb: float = _limit(
        4, "--disk", "uploads and archives of all visitors, in GB; the oldest are deleted first"
    )
    session_gb: float = _limit(
        1, "--session-memory", "memory for one visitor's image and its results, in GB"
    )
    memory_gb: float = _limit(
        4, "--memory", "the same for all visitors, in GB; the least recently used go first"
    )
    per_client: int = _limit(
        4, "--per-client", "requests that one client may have in the queue, and images kept for it"
    )
    requests: int = _limit(300, "--client-requests", "requests of one client per minute")
    uploads: int = _limit(20, "--client-uploads", "uploads of one client per minute")

    @classmethod
    def add_options(cls, parser: ArgumentParser) -> None:
        """Add an option for each limit."""
        for limit in fields(cls):
            parser.add_argument(
                limit.metadata["option"],
                dest=limit.name,
                type=positive if limit.type == "int" else _amount,
                default=limit.default,
                metavar="N",
                help=limit.metadata["help"],
            )
