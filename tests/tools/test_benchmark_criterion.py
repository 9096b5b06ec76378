"""tools/benchmark_criterion.py: time and memory of the criterion."""

import json

import pytest
import torch

from tests.helpers.scripts import load_script

tool = load_script("tools/benchmark_criterion.py")

SMALL = ["--queries", "7", "--images", "2", "--layers", "3", "--size", "32"]


def small_batch(count):
    return tool.random_batch(count, tool.parse(SMALL), torch.device("cpu"))


@pytest.mark.parametrize("count", [3, 9], ids=["fewer targets", "more targets than queries"])
def test_the_reference_gives_the_same_losses_and_gradients(count):
    found, gradients = [], []
    for criterion in (tool.build(None), tool.build_reference()):
        outputs, targets = small_batch(count)
        found.append({name: v.item() for name, v in criterion(outputs, targets).items()})
        tool.step(criterion, outputs, targets)
        gradients.append([layer["pred_masks"].grad for layer in outputs["aux_outputs"]])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-7)


def test_the_figures_are_printed_and_written(tmp_path, capsys):
    file = tmp_path / "figures.json"
    arguments = [*SMALL, "--targets", "2", "5", "--textbook", "--rounds", "2"]
    assert tool.main([*arguments, "--json", str(file)]) == 0
    written = json.loads(file.read_text())
    assert [row["targets"] for row in written["rows"]] == [2, 5]
    for row in written["rows"]:
        for name in ("ours", "textbook"):
            assert 0 < row[name]["least_s"] <= row[name]["median_s"]
    assert written["settings"]["queries"] == 7
    title, *lines = capsys.readouterr().out.splitlines()[1:]
    assert title.split()[-1] == "fast" and len(lines) == 2


def test_the_memory_of_a_step_is_at_least_that_of_its_gradients():
    outputs, targets = tool.random_batch(
        4, tool.parse(["--queries", "100", "--size", "512"]), torch.device("cpu")
    )
    found = tool.peak(tool.build(None), outputs, targets)
    if found is None:
        pytest.skip("this system does not report the peak memory of a process")
    layers = tool.layer_predictions(outputs)
    bytes_ = sum(layer["pred_masks"].numel() * 4 for layer in layers)
    assert found > 0.9 * bytes_ / 2**20


def test_an_invalid_number_of_points_is_an_error_of_one_line(capsys):
    assert tool.main([*SMALL, "--points", "-3"]) == 1
    assert "TRAIN_NUM_POINTS is -3" in capsys.readouterr().err
