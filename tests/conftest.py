"""Fixtures that every test may use."""

from __future__ import annotations

import os
from pathlib import Path

# The tests' models are too small to share among threads, and threads that wait for each other
# crawl where the machine is busy. Set before torch is imported; commands under test inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from mask_former.config.keys import get_mask_former_cfg

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
