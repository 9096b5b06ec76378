"""tools/benchmark_evaluation.py: evaluation compared with detectron2's."""

import re

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.helpers.scripts import load_script

tool = load_script("tools/benchmark_evaluation.py")


@pytest.fixture(autouse=True)
def forget():
    yield
    if tool.DATASET in DatasetCatalog:
        DatasetCatalog.remove(tool.DATASET)
        MetadataCatalog.remove(tool.DATASET)


ARGUMENTS = ["--images", "5", "--classes", "6", "--size", "48", "64", "--threads", "1"]


def test_both_tasks_are_timed(capsys):
    assert tool.main(ARGUMENTS) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head == "5 images of 64×48, 6 classes"
    for task, line in zip(("panoptic", "semantic"), lines, strict=True):
        assert re.fullmatch(
            rf"{task}, seconds: ours [\d.]+ \(CPU [\d.]+\), detectron2 [\d.]+ \(CPU [\d.]+\); "
            r"[\d.]+ times as fast \(CPU [\d.]+\)",
            line,
        )


def test_metrics_that_differ_are_an_error(tmp_path):
    outputs = tool.write_synthetic_data(tmp_path, tool.parse(ARGUMENTS))
    evaluators = tool.evaluators(tmp_path)["semantic"]
    evaluators["ours"]._ignore_label = 0
    with pytest.raises(ValueError, match=r"expected 0 … 5, and 0 for pixels without"):
        tool.measure(evaluators, outputs, "semantic")


def test_an_invalid_number_of_classes_is_an_error_of_one_line(capsys):
    assert tool.main(["--classes", "1"]) == 1
    assert "expected 2 … 254 classes" in capsys.readouterr().err
