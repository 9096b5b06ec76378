"""Ways to damage a file."""

from __future__ import annotations

from pathlib import Path


def flip_a_bit(path: Path) -> Path:
    """Change the lowest bit of the byte in the middle of a file; return its path."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    return path
