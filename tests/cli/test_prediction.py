"""Arguments of a command determine the predictor, its plug-ins and the results."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from mask_former.cli import options, predict
from mask_former.cli.options import ModelArguments, ResultArguments
from mask_former.cli.prediction import model_loader, predict_function
from mask_former.config.loading import load_cfg
from mask_former.registries import load_plugin
from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins
from tests.helpers.tiny_model import write_tiny_model

IMAGE = np.full((48, 64, 3), 100, np.uint8)


def arguments(*words: str) -> tuple[ModelArguments, ResultArguments]:
    parser = argparse.ArgumentParser()
    options.add_result_options(parser)
    options.add_model_options(parser)
    parsed = parser.parse_args(words)
    return options.model_arguments(parser, parsed), options.collect(ResultArguments, parsed)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    config, weights = write_tiny_model(tmp_path_factory.mktemp("model"))
    return str(config), str(weights)


def test_arguments_are_hashable_and_cannot_be_changed() -> None:
    model, results = arguments("--save", "npz,overlay", "--opts", "SEED", "1")
    assert model.opts == ("SEED", "1") and results.save == ("npz", "overlay")
    assert hash(model) == hash(arguments("--opts", "SEED", "1")[0])
    with pytest.raises(AttributeError):
        model.device = "cuda"  # type: ignore[misc]


def test_a_palette_changes_the_results_but_not_the_predictor(
    tiny: tuple[str, str],
) -> None:
    model, results = arguments(
        "--palette", "spread", "--config-file", tiny[0], "--opts", "MODEL.WEIGHTS", tiny[1]
    )
    predictor = model_loader(model)()
    classes, before = predictor.classes, vars(predictor).copy()
    [result] = predict_function(predictor, ["semantic"], results, 1)([IMAGE])
    assert result.classes == classes.with_palette("spread") != classes
    assert vars(predictor) == before
    assert predictor(IMAGE).classes is classes


@pytest.fixture
def plugged(tmp_path: Path, tiny: tuple[str, str]) -> Iterator[list[str]]:
    """Return arguments for a model that needs the plug-in ``finest_map.py``, not yet loaded."""
    plugin, weights = tmp_path / "finest_map.py", str(tmp_path / "x.pth")
    plugin.write_text(FINEST_MAP_DECODER)
    opts = ["MODEL.SEM_SEG_HEAD.PIXEL_DECODER_NAME", "FinestMapDecoder"]
    with forgetting_plugins():
        load_plugin(plugin)
        torch.save({"model": build_model(load_cfg(tiny[0], opts)).state_dict()}, weights)
    with forgetting_plugins():
        yield ["--config-file", tiny[0], "--opts", *opts, "MODEL.WEIGHTS", weights]


def test_a_command_loads_the_plugins_that_a_model_needs(
    plugged: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict, "setup_logger", lambda **kwargs: None)
    Image.fromarray(IMAGE).save("a.png")
    words = ["--input", "a.png", "--kinds", "semantic", *plugged]
    assert predict.main(words) == 2
    assert "'FinestMapDecoder', which is not registered" in caplog.text
    assert predict.main(["--plugin", "gone.py", *words]) == 2
    assert "The plug-in gone.py is missing" in caplog.text
    assert predict.main(["--plugin", "finest_map.py", *words]) == 0
    assert Path("output/demo/a.png").is_file()
