"""tools/export.py writes the files that an application needs, and reports what it omits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mask_former.cli import export
from mask_former.config.loading import load_cfg
from mask_former.inference import semantic_map
from mask_former.predictor.trained_model import load_trained_model
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import COLORS, NAMES, write_tiny_model


def run(folder: Path, *arguments: str, weights: str | None = None) -> int:
    config, checkpoint = write_tiny_model(folder)
    content = torch.load(checkpoint, weights_only=True)
    for name, weight in content["model"].items():
        if "mask_embed.layers.2" in name:  # logits as large as a trained model's
            weight.mul_(0.01)
    torch.save(content, checkpoint)
    words = ["--config-file", str(config), "--output", str(folder / "graphs"), *arguments]
    return export.main([*words, "MODEL.WEIGHTS", str(checkpoint) if weights is None else weights])


def test_the_graphs_come_with_the_facts_that_an_application_needs(tmp_path, capsys):
    size = ["--size", "64", "96"]
    assert run(tmp_path, "--format", "torchscript", "--dynamic", "--verify", *size) == 0
    out = capsys.readouterr().out
    # two graphs, two sizes and batches each
    assert out.count(" ok\n") == 4 and "ratio" in out and torch.__version__ in out
    graphs = tmp_path / "graphs"
    about = json.loads((graphs / "mask_former.json").read_text(encoding="utf-8"))
    assert [one["name"] for one in about["classes"]] == NAMES
    assert [one["color"] for one in about["classes"]] == COLORS
    assert [one["isthing"] for one in about["classes"]] == [False, False, True, True]
    assert about["input"]["channels"] == "RGB" and about["input"]["size"] is None
    assert about["input"]["mean"] == [123.0, 116.0, 103.0] and about["input"]["stride"] == 32
    files = {one["file"] for one in about["graphs"].values()}
    assert files == {"mask_former.ts", "class_map.ts"} and files < set(map(_name, graphs.iterdir()))


def _name(path: Path) -> str:
    return path.name


def test_a_graph_with_other_outputs_than_the_model_is_an_error(tmp_path, capsys, monkeypatch):
    def off(model, name):
        eager = reference(model, name)
        return lambda image: tuple(output + 1 for output in eager(image))

    reference = export.reference
    monkeypatch.setattr(export, "reference", off)
    monkeypatch.setattr(export, "ROUNDS", 1)
    assert run(tmp_path, "--format", "torchscript", "--verify", "--size", "64", "64") == 1
    output = capsys.readouterr()
    assert "DIFFERENT" in output.out and "the graphs differ from the model" in output.err


def test_random_weights_need_an_option_and_are_reported(tmp_path, capsys, caplog):
    size = ["--size", "64", "64", "--format", "torchscript"]
    assert run(tmp_path, *size, weights="") == 1
    assert "MODEL.WEIGHTS is not set" in capsys.readouterr().err
    assert run(tmp_path, "--random-weights", *size, weights="") == 0
    assert "RANDOM WEIGHTS" in caplog.text


@pytest.mark.parametrize("size", [["100", "64"], ["32", "64"]])
def test_an_invalid_size_is_refused_with_a_valid_one(size, tmp_path, capsys):
    assert run(tmp_path, "--size", *size) == 1
    error = capsys.readouterr().err
    assert "multiples of 32" in error and f"{max(-(-int(size[0]) // 32) * 32, 64)} × 64" in error


def test_settings_that_are_not_exported_are_named(tmp_path, caplog):
    config, _ = write_tiny_model(tmp_path)
    opts = ["TEST.SLIDING_WINDOW.SIZE", "64", "TEST.AUG.ENABLED", "True"]
    words = ["--config-file", str(config), "--output", str(tmp_path)]
    export.prepare_cfg(export.parse([*words, *opts]))
    assert "TEST.SLIDING_WINDOW is not exported" in caplog.text
    assert "TEST.AUG (test-time augmentation) is not exported" in caplog.text


EXAMPLE = """
import runpy, sys
sys.modules["torch"] = None  # `import torch` raises ImportError
sys.argv[1:] = {arguments!r}
runpy.run_path({example!r}, run_name="__main__")
assert not any(name.startswith(("detectron2", "mask_former")) for name in sys.modules)
"""


@pytest.mark.subprocess
def test_the_example_gives_the_models_class_map_without_torch(tmp_path):
    pytest.importorskip("onnxruntime")
    assert run(tmp_path, "--size", "64", "96") == 0
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels).resize((90, 64), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.png")
    paths = [str(tmp_path / name) for name in ("graphs", "photo.png", "classes.png")]
    example = str(ROOT / "demo" / "onnx_example.py")
    code = EXAMPLE.format(arguments=paths, example=example)
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    # the model on the same image, 64×90 padded to 64×96
    cfg = load_cfg(str(tmp_path / "tiny.yaml"), ["MODEL.WEIGHTS", str(tmp_path / "tiny.pth")])
    model = load_trained_model(cfg)
    image = torch.from_numpy(np.asarray(photo).transpose(2, 0, 1).copy())
    with torch.no_grad():
        padded = model.pixel_mean.expand(3, 64, 96).clone()
        padded[:, :, :90] = image
        classes, masks = export.reference(model, "mask_former")(padded[None])
        expected = semantic_map(classes[0], masks[0], (64, 96))[:, :90]
    colors = torch.tensor(COLORS)[expected]
    found = torch.from_numpy(np.asarray(Image.open(paths[2])).copy())
    assert len(expected.unique()) > 1
    assert (found != colors).any(-1).float().mean() < 1e-3


def test_the_example_is_short():
    assert len((ROOT / "demo" / "onnx_example.py").read_text().splitlines()) < 60
