"""tools/analyze_model.py: tables and JSON of a model's costs, without weights or data."""

from __future__ import annotations

import json

import pytest
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins
from tests.helpers.scripts import load_script
from tests.helpers.tiny_model import tiny_settings

analyze_model = load_script("tools/analyze_model.py")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    return path


def run(*arguments):
    return analyze_model.main([str(argument) for argument in arguments])


def test_the_parameters_of_a_plugin_are_counted(config, tmp_path, capsys):
    plugin, settings = tmp_path / "finest_map.py", yaml.safe_load(config.read_text())
    plugin.write_text(FINEST_MAP_DECODER)
    settings["MODEL"]["SEM_SEG_HEAD"]["PIXEL_DECODER_NAME"] = "FinestMapDecoder"
    config.write_text(yaml.safe_dump(settings))
    with forgetting_plugins():
        assert run("--config-file", config, "--plugin", plugin, "--depth", 4) == 0
    assert numbers(capsys.readouterr().out, "sem_seg_head.pixel_decoder.mask_features")


def numbers(text, row):
    """Return the numbers in a row of a table."""
    lines = [line.split() for line in text.splitlines()]
    return next([float(word) for word in line[1:]] for line in lines if line[:1] == [row])


def test_the_tables_and_the_json_have_the_same_counts(config, tmp_path, capsys):
    output = tmp_path / "new" / "counts.json"
    assert run("--config-file", config, "--size", 64, 96, "--json", output) == 0
    content = json.loads(output.read_text())
    assert content["config_file"] == str(config) and content["input_sizes"] == [[64, 96]]
    parameters, flops, activations = (
        content[key] for key in ("parameters", "flops", "activations")
    )
    text = capsys.readouterr().out
    for row, module in (("network", ""), ("sem_seg_head.predictor",) * 2):
        expected = [
            parameters[module] / 1e6,
            sum(flops[module].values()) / 1e9,
            sum(activations[module].values()) / 1e6,
        ]
        assert numbers(text, row) == pytest.approx(expected, abs=0.005)
    conv = [flops[""]["conv"] / 1e9, activations[""]["conv"] / 1e6]
    assert numbers(text, "conv") == pytest.approx(conv, abs=0.005)
    assert [name for name in content["skipped"] if name.split("::")[1] not in text] == []


def test_the_depth_decides_which_modules_are_listed(config, capsys):
    for depth, shown, hidden in (
        (1, "sem_seg_head ", "sem_seg_head.predictor"),
        (2, "sem_seg_head.predictor", "sem_seg_head.predictor.transformer"),
    ):
        options = ("--tasks", "parameter", "--depth", depth)
        assert run("--config-file", config, *options) == 0
        text = capsys.readouterr().out
        assert shown in text and hidden not in text


def test_only_the_requested_tasks_are_done(config, tmp_path, capsys):
    output = tmp_path / "counts.json"
    options = ("--tasks", "activation", "structure", "speed", "--size", 64, "--json", output)
    assert run("--config-file", config, *options) == 0
    content = json.loads(output.read_text())
    assert content["parameters"] is content["flops"] is None
    assert content["activations"] and content["seconds"] > 0 and content["device"] == "cpu"
    text = capsys.readouterr().out
    assert "D2SwinTransformer(" in text and " ms per image (cpu, fp32)" in text
    assert "activations (M)" in text and "parameters (M)" not in text


def test_keys_may_follow_options_of_several_values(config, tmp_path):
    output = tmp_path / "counts.json"
    queries = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"
    counts = []
    for number in (6, 60):
        options = ("--json", output, "--tasks", "parameter", "--size", 64, queries, number)
        assert run("--config-file", config, *options) == 0
        parameters = json.loads(output.read_text())["parameters"]
        counts.append(parameters["sem_seg_head.predictor.query_embed"])
    assert counts == [6 * 16, 60 * 16]


def test_the_sizes_may_be_those_of_the_test_images(config, tmp_path, capsys):
    records = []
    for index, size in enumerate([(64, 64), (128, 64), (64, 64), (30, 20)]):
        records.append({"file_name": str(tmp_path / f"{index}.png")})
        Image.new("RGB", size).save(records[-1]["file_name"])
    DatasetCatalog.register("analyzed_images", lambda: records)
    output = tmp_path / "counts.json"
    options = ("--tasks", "activation", "--num-images", 3, "--json", output)
    assert run("--config-file", config, *options, "DATASETS.TEST", "['analyzed_images']") == 0
    content = json.loads(output.read_text())
    assert content["input_sizes"] == [[64, 64], [64, 128], [64, 64]]
    assert "counts are the mean of 3 images" in capsys.readouterr().out
    totals = []
    for size in ((64, 64), (64, 128)):
        assert run("--config-file", config, "--size", *size, "--json", output) == 0
        totals.append(sum(json.loads(output.read_text())["activations"][""].values()))
    DatasetCatalog.remove("analyzed_images")
    found = sum(content["activations"][""].values())
    assert found == pytest.approx((2 * totals[0] + totals[1]) / 3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--config-file", "no.yaml"], "There is no config file no.yaml"),
        (["MODEL.DEVICEE", "cpu"], "did you mean MODEL.DEVICE"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "GeneralizedRCNN"),
        (["--num-images", 2, "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
        (["--num-images", 2, "DATASETS.TEST", "('nowhere',)"], "nowhere"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(config, options, expected, capsys):
    assert run("--config-file", config, *options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("analyze_model: ") and expected in error


@pytest.mark.parametrize("options", [["--size", 1, 2, 3], ["--size", 0], ["--num-images", 0]])
def test_invalid_sizes_are_refused(config, options, capsys):
    with pytest.raises(SystemExit):
        run("--config-file", config, *options)
    assert options[0] in capsys.readouterr().err
