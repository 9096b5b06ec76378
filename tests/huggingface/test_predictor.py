"""Predictors created from a folder written by transformers."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from mask_former.predictor.predictor import MaskFormerPredictor
from tests.helpers.huggingface_models import (
    NAMES,
    load_theirs,
    save_theirs,
    their_model,
    transformers,
)
from tests.helpers.tiny_model import write_tiny_model

MASK2FORMER = "Mask2Former, Swin"


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """A folder of a Mask2Former, or of the kind that a test is parametrized with."""
    path = tmp_path_factory.mktemp("theirs")
    size = {"shortest_edge": 64, "longest_edge": 128}
    return save_theirs(their_model(getattr(request, "param", MASK2FORMER)), path, size=size)


def make_image(height=64, width=96):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("folder", ["Swin", MASK2FORMER], indirect=True)
def test_a_folder_gives_the_logits_of_transformers_and_a_semantic_result(folder):
    predictor = MaskFormerPredictor.from_pretrained(folder, device="cpu")
    found = predictor.logits(make_image())
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    theirs = load_theirs(folder)
    with torch.no_grad():
        expected = theirs(**processor(make_image(), return_tensors="pt"))
    assert expected.class_queries_logits.std() > 0.1 < expected.masks_queries_logits.std()
    for ours, their in (
        (found.logits.mask_cls, expected.class_queries_logits[0]),
        (found.logits.mask_pred, expected.masks_queries_logits[0]),
    ):
        assert ours.shape == their.shape and (ours - their).abs().max() < 1e-3
    result = found.result()
    assert result.kinds == ["semantic"] and result.classes.names == NAMES
    assert result.classes.thing_ids == []


def test_with_things_there_are_panoptic_and_instance_results(folder):
    things = ["car", "tram"]
    predictor = MaskFormerPredictor.from_pretrained(folder, device="cpu", things=things)
    result = predictor(make_image(), kinds=["panoptic", "instance"], object_mask_threshold=0)
    assert {s["category_id"] for s in result.panoptic.segments if s["isthing"]} <= {2, 3}
    assert set(result.instances.class_names) <= set(things)


def test_options_can_turn_results_on(folder):
    opts = ("MODEL.MASK_FORMER.TEST.INSTANCE_ON", True, "INPUT.MIN_SIZE_TEST", 32)
    predictor = MaskFormerPredictor.from_pretrained(folder, device="cpu", opts=opts)
    assert predictor.kinds == ("instance", "semantic")


def test_the_package_transformers_is_not_needed(folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    predictor = MaskFormerPredictor.from_pretrained(folder, device="cpu")
    assert predictor(make_image()).semantic.shape == (64, 96)


def test_the_error_for_weights_that_do_not_fit_the_config_names_the_folder(folder, tmp_path):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["mask_feature_size"] = 48
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{tmp_path} does not fit the model"):
        MaskFormerPredictor.from_pretrained(tmp_path, device="cpu")


def test_the_error_for_a_config_file_suggests_the_folder_alone(folder, tmp_path):
    config, _ = write_tiny_model(tmp_path)
    with pytest.raises(ValueError, match="its folder to MaskFormerPredictor without a config"):
        MaskFormerPredictor.from_pretrained(folder, config_file=config, device="cpu")
