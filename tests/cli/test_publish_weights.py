"""A published file has the checkpoint's weights in half precision, and what inference needs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mask_former.checkpoint.inference_data import inference_data
from mask_former.cli import publish_weights
from mask_former.config.loading import load_cfg
from mask_former.predictor.pretrained import find_pretrained
from mask_former.predictor.trained_model import load_trained_model
from mask_former.utils.weight_files import read_checkpoint, write_weights
from tests.helpers.tiny_model import NAMES, write_tiny_model


def checkpoint(tmp_path: Path, **weights: torch.Tensor) -> Path:
    path = tmp_path / "model.pth"
    torch.save({"model": weights, "iteration": 7, "trainer": {"optimizer": {}}}, path)
    return path


def test_floats_become_half_precision_integers_are_kept_and_the_optimizer_is_dropped(tmp_path):
    weight, count = torch.randn(3, 4), torch.tensor(9)
    output = tmp_path / "new" / "weights.safetensors"
    source = checkpoint(tmp_path, weight=weight, count=count)
    assert publish_weights.main([str(source), str(output)]) == 0
    content = read_checkpoint(output)
    assert set(content) == {"model"} and set(content["model"]) == {"weight", "count"}
    assert torch.equal(content["model"]["weight"], weight.half())
    assert torch.equal(content["model"]["count"], count)


def test_a_value_beyond_half_precision_is_refused_unless_precision_is_kept(tmp_path, capsys):
    source = checkpoint(tmp_path, weight=torch.tensor([1e6]))
    output = tmp_path / "weights.safetensors"
    assert publish_weights.main([str(source), str(output)]) == 1
    assert "weight has values" in capsys.readouterr().err and not output.exists()
    assert publish_weights.main([str(source), str(output), "--keep-precision"]) == 0
    assert read_checkpoint(output)["model"]["weight"].item() == 1e6


def test_a_missing_checkpoint_is_an_error_that_names_it(tmp_path, capsys):
    assert publish_weights.main([str(tmp_path / "no.pth"), str(tmp_path / "w.safetensors")]) == 1
    assert "no.pth" in capsys.readouterr().err


def test_class_names_are_published_with_the_weights(tmp_path):
    source, output = checkpoint(tmp_path, weight=torch.zeros(1)), tmp_path / "w.safetensors"
    content = torch.load(source, weights_only=True)
    torch.save({**content, "class_names": ["wall, building", "sky"]}, source)
    assert publish_weights.main([str(source), str(output)]) == 0
    assert read_checkpoint(output)["class_names"] == ["wall, building", "sky"]


def test_averaged_weights_are_published_on_request(tmp_path, capsys):
    trained, averaged = torch.zeros(2), torch.ones(2)
    source, output = checkpoint(tmp_path, **{"a.weight": trained}), tmp_path / "w.safetensors"
    assert publish_weights.main([str(source), str(output), "--ema"]) == 1
    assert "holds no averaged weights, only model, iteration, trainer" in capsys.readouterr().err
    assert not output.exists()
    content = torch.load(source, weights_only=True)
    ema = {"n_averaged": torch.tensor(3), "module.a.weight": averaged}
    torch.save({**content, "ema": ema}, source)
    for flags, expected in (([], trained), (["--ema"], averaged)):
        assert publish_weights.main([str(source), str(output), *flags]) == 0
        weights = read_checkpoint(output)["model"]
        assert weights.keys() == {"a.weight"} and torch.equal(weights["a.weight"], expected.half())


@pytest.fixture
def tiny(tmp_path):
    """Write a config and a checkpoint as training writes it; return both paths."""
    config, weights = write_tiny_model(tmp_path, PANOPTIC_ON=True)
    whole, cfg = tmp_path / "whole.pth", load_cfg(str(config))
    write_weights(read_checkpoint(weights)["model"], whole, NAMES, inference_data(cfg))
    return config, whole


def test_config_and_classes_are_published_with_the_weights(tiny, tmp_path, capsys):
    whole, output = tiny[1], tmp_path / "w.safetensors"
    assert publish_weights.main([str(whole), str(output)]) == 0
    assert "--config-file" not in capsys.readouterr().out
    assert read_checkpoint(output)["inference"] == read_checkpoint(whole)["inference"]
    found = find_pretrained(output, device="cpu")
    assert found.classes.names == NAMES and found.classes.thing_ids == [2, 3]
    assert found.cfg.MODEL.MASK_FORMER.TEST.PANOPTIC_ON
    expected = read_checkpoint(whole)["model"]
    for name, value in load_trained_model(found.cfg).state_dict().items():
        if not name.startswith("criterion."):  # built from the config
            kept = expected[name].half() if value.is_floating_point() else expected[name]
            assert torch.equal(value, kept.to(value.dtype)), name


def test_a_config_file_adds_config_and_classes_to_an_older_checkpoint(tiny, tmp_path, capsys):
    config, whole = tiny
    older, output = tmp_path / "older.pth", tmp_path / "w.safetensors"
    write_weights(read_checkpoint(whole)["model"], older)
    assert publish_weights.main([str(older), str(output)]) == 0
    assert "It contains no config: give" in capsys.readouterr().out
    assert publish_weights.main([str(older), str(output), "--config-file", str(config)]) == 0
    content = read_checkpoint(output)
    assert content["inference"] == read_checkpoint(whole)["inference"]
    assert content["class_names"] == NAMES


def test_a_damaged_inference_entry_is_not_published(tiny, tmp_path, capsys):
    content = torch.load(tiny[1], weights_only=True)
    torch.save({**content, "inference": "text"}, tiny[1])
    output = tmp_path / "w.safetensors"
    assert publish_weights.main([str(tiny[1]), str(output)]) == 1
    error = capsys.readouterr().err
    assert "its 'inference' entry" in error and error.count("\n") == 1 and not output.exists()
