"""The page of demo/app.py with a tiny model, for the tests of this folder."""

from __future__ import annotations

import importlib
import sys

import pytest

from mask_former import MaskFormerPredictor
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import write_tiny_model

DEMO = ROOT / "demo"


@pytest.fixture(scope="module", autouse=True)
def importable():
    """Make `page` importable from its folder, as demo/app.py does."""
    sys.path.insert(0, str(DEMO))
    yield
    sys.path.remove(str(DEMO))


@pytest.fixture
def part():
    """Return a function that imports a module of demo/page."""
    return lambda name: importlib.import_module(f"page.{name}")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(
        tmp_path_factory.mktemp("model"),
        PANOPTIC_ON=True,
        INSTANCE_ON=True,
        OBJECT_MASK_THRESHOLD=0.25,
        OVERLAP_THRESHOLD=0.1,
    )


@pytest.fixture(scope="module")
def predictor(tiny):
    return MaskFormerPredictor.from_pretrained(tiny[1], config_file=tiny[0], device="cpu")


@pytest.fixture
def settings(part):
    return part("image_results").Settings("panoptic", 0.25, 0.1, 0.1, 0.0, 0.5)


@pytest.fixture
def page(part, predictor, tmp_path, monkeypatch):
    """Build a page with one checkpoint; `page.warnings` has the warnings for its visitor."""
    gradio = pytest.importorskip("gradio", reason="gradio is not installed (requirements/app.txt)")
    models = part("models").Models(["tiny.pth"], lambda source: predictor, keep=1)
    limits = part("uploads").Limits(megapixels=1, frames=4)
    page = part("handlers").Page(models, limits, tmp_path / "files", max_sessions=2)
    page.warnings = []
    monkeypatch.setattr(gradio, "Warning", page.warnings.append)
    return page
