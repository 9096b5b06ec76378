"""Fixtures that every test may use."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask_former.config import get_mask_former_cfg

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The optional folder of reference data beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip("the optional folder ../shared is not there")
    return SHARED


@pytest.fixture
def cfg():
    """Our defaults, on the CPU, without weights."""
    cfg = get_mask_former_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    return cfg
