"""tools/benchmark.py: stages, ratios and memory of a small model."""

from __future__ import annotations

import itertools
import json
import time

import pytest
import yaml
from detectron2.data import DatasetCatalog
from PIL import Image

from tests.helpers.scripts import load_script
from tests.helpers.tiny_model import tiny_settings

benchmark = load_script("tools/benchmark.py")

SMALL = ["--size", 32, 64, "--targets", 3, "--iterations", 5, "--warmup", 2, "--matrix", 64]
QUICK = [*SMALL, "--no-memory"]


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_settings()))
    return path


@pytest.fixture
def figures(config, tmp_path):
    """Return a function that runs the command and reads the JSON that it writes."""

    def figures(*options):
        output = tmp_path / "new" / "figures.json"
        assert run("--config-file", config, "--json", output, *options) == 0
        return json.loads(output.read_text())

    return figures


def run(*arguments):
    return benchmark.main([str(argument) for argument in arguments])


def test_stages_add_up_to_the_total_and_the_table_shows_it(figures, capsys, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(ticks)))  # a stage is a second
    content = figures(*QUICK, "--mode", "all")
    assert content["work"]["size"] == [32, 64] and content["weights"] == "random"
    assert content["matrix_product_gflops"] == dict.fromkeys(["fp32", "bf16"], 2 * 64**3 / 1e9)
    second = {"p50": 1, "p95": 1}
    for result, count in zip(content["results"], (5, 10), strict=True):
        assert list(result["stages"].values()) == [second] * count
        assert result["total"] == {"p50": count, "p95": count}
        assert result["network"] == second and result["total_over_network"] == count
        assert result["precision"] == "float32"
    inference, training = content["results"]
    assert inference["semantic_map"] == second and training["semantic_map"] is None
    assert inference["semantic_map_total_over_network"] == 2
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    for stage in [*inference["stages"], *training["stages"]]:
        assert [*stage.split(), "1000.0", "/", "1000.0"] in lines
    assert ["total", "10000.0", "/", "10000.0"] in lines


def test_a_config_compared_with_itself_takes_the_same_time_and_a_deeper_one_longer(figures, config):
    deeper = "MODEL.SWIN.DEPTHS [1,1,30,1]"
    options = [*QUICK, "--iterations", 9, "--compare", config, "--compare", deeper]
    first, same, longer = figures(*options)["results"]
    assert [first["name"], same["name"], longer["name"]] == ["ours", "B", "C"]
    assert first["times_the_first"] == first["network_times_the_first"] == 1
    assert 0.5 < same["times_the_first"] < 2 and same["largest_difference"] == 0
    assert longer["times_the_first"] > 2 and longer["network_times_the_first"] > 2


def test_peers_compute_the_same_results_in_float32(figures):
    pytest.importorskip("transformers", reason="transformers is not installed")
    options = [*QUICK, "--mode", "all", "--precision", "bf16", "--segments", 2]
    peers = ["--peer", "textbook", "transformers", "MODEL.MASK_FORMER.TEST.PANOPTIC_ON", "True"]
    content = figures(*options, *peers)
    results = {(one["name"], one["mode"]): one for one in content["results"]}
    assert len(results) == 6
    for (name, mode), one in results.items():
        assert one["precision"] == ("bfloat16" if name == "ours" else "float32")
        assert one["times_the_first"] > 0
        if mode == "inference":
            assert {"input", "semantic", "panoptic"} <= set(one["stages"])
        else:
            assert one["criterion_times_the_first"] > 0
    content = figures(*QUICK, "--iterations", 1, *peers)
    assert all(one["largest_difference"] < 1e-4 for one in content["results"])


def test_peak_memory_is_measured_in_a_process_of_its_own(figures, capsys):
    (result,) = figures(*SMALL, "--iterations", 1)["results"]
    assert result["memory_times_the_first"]["process"] == 1
    peak = result["peak_mib"]
    assert 50 < peak["process"] < 20_000
    if peak["step"] is not None:
        assert 0 <= peak["step"] < peak["process"]
    assert "peak of the process, MiB" in capsys.readouterr().out


def test_data_loading_is_timed_on_request(figures, tmp_path):
    image_file = tmp_path / "image.png"
    Image.new("RGB", (40, 30)).save(image_file)
    DatasetCatalog.register("benchmark_images", lambda: [{"file_name": str(image_file)}])
    try:
        (result,) = figures(*QUICK, "--data", "DATASETS.TEST", "['benchmark_images']")["results"]
    finally:
        DatasetCatalog.remove("benchmark_images")
    assert 0 < result["data"]["p50"] <= result["data"]["p95"]
    assert "data" not in result["stages"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--config-file", "no.yaml"], "There is no config file no.yaml"),
        (["--compare", "MODEL.DEVICEE cpu"], "did you mean MODEL.DEVICE"),
        (["MODEL.META_ARCHITECTURE", "GeneralizedRCNN"], "GeneralizedRCNN"),
        (["--peer", "textbook", "MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 8], "TRAIN_NUM_POINTS is 8"),
        (["--trained"], "MODEL.WEIGHTS is not set"),
        (["--data", "DATASETS.TEST", "()"], "DATASETS.TEST is empty"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(config, options, expected, capsys):
    assert run("--config-file", config, *QUICK, *options) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("benchmark: ") and expected in error


@pytest.mark.parametrize(
    "options", [["--size", 1, 2, 3], ["--size", 0], ["--batch", 0], ["--iterations", 0]]
)
def test_invalid_numbers_are_refused(config, options, capsys):
    with pytest.raises(SystemExit):
        run("--config-file", config, *options)
    assert options[0] in capsys.readouterr().err
