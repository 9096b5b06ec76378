"""Folders of the checkout."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
GOLDEN = ROOT / "tests" / "golden"
"""Results of the published code, which parity tests compare with."""
