"""tools/train_net.py on a custom dataset, and again from the config that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.helpers.own_data import write_instances, write_panoptic, write_semantic_folder
from tests.helpers.train_net_runs import (
    SCRIPT,
    SMALL_RUN,
    TINY_SWIN,
    check_done,
    config_path,
    pairs,
    results_of,
    run_in_turn,
)
from tests.helpers.train_net_runs import environment as environment_of

pytestmark = pytest.mark.subprocess

SMALL = {
    **SMALL_RUN,
    **TINY_SWIN,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 32,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 32,
    "INPUT.CROP.SIZE": [32, 32],
}


def test_one_command_trains_on_a_custom_dataset_and_its_config_repeats_it(tmp_path: Path) -> None:
    write_semantic_folder(tmp_path, (0, 255), count=3)
    (tmp_path / "classes.txt").write_text("255: dog\n0: ground\n")
    first, again, evaluated = (tmp_path / name for name in ("first", "again", "evaluated"))
    config = config_path("custom/maskformer_semantic.yaml")
    data = "--train-images i --train-labels l --val-images i --val-labels l --classes classes.txt"
    left, whole = str(first / "config.yaml"), {"MODEL.WEIGHTS": first / "model_final.pth"}
    words = {
        first: ["--config-file", str(config), *data.split(), *pairs(SMALL)],
        again: ["--config-file", left],
        evaluated: ["--config-file", left, "--eval-only", *pairs(whole)],
    }
    runs = {
        output: [str(SCRIPT), *arguments, "OUTPUT_DIR", str(output)]
        for output, arguments in words.items()
    }
    run_in_turn(runs, cwd=tmp_path, environment=environment_of(tmp_path))
    for output in runs:
        check_done(output)
    results = results_of(first)
    assert {"mIoU", "IoU-dog", "IoU-ground"} <= results["custom_val"]["sem_seg"].keys()
    assert results_of(again) == results_of(evaluated) == results
    kept = yaml.safe_load((again / "config.yaml").read_text())
    assert kept["DATASETS"]["TABLES"] == ["custom_table.json"]
    assert (again / "custom_table.json").read_text() == (first / "custom_table.json").read_text()
    assert kept["MODEL"]["SEM_SEG_HEAD"]["NUM_CLASSES"] == 2


def test_one_command_trains_and_evaluates_on_an_instance_json_and_on_a_panoptic_json(
    tmp_path: Path,
) -> None:
    write_instances(tmp_path / "n")
    write_panoptic(tmp_path / "p")
    instance = "--{0}-images n/i --{0}-json n/x.json"
    panoptic = "--{0}-images p/i --{0}-json p/x.json --{0}-panoptic p/p"
    # The model is hardly trained, so its confidence is low; its results must not be empty.
    unsure = {"OBJECT_MASK_THRESHOLD": 0.0, "OVERLAP_THRESHOLD": 0.0}
    settings = {**SMALL, **{f"MODEL.MASK_FORMER.TEST.{k}": v for k, v in unsure.items()}}
    expected = {
        "maskformer_instance": (instance, "segm", "AP-dog"),
        "maskformer_panoptic": (panoptic, "panoptic_seg", "PQ"),
        "mask2former_panoptic": (panoptic, "panoptic_seg", "PQ"),
    }
    runs = {}
    for name, (data, _, _) in expected.items():
        given = [*data.format("train").split(), *data.format("val").split(), "--name", name]
        keys = pairs({**settings, "OUTPUT_DIR": tmp_path / name})
        config = str(config_path(f"custom/{name}.yaml"))
        runs[tmp_path / name] = [str(SCRIPT), "--config-file", config, *given, *keys]
    run_in_turn(runs, cwd=tmp_path, environment=environment_of(tmp_path))
    for output in runs:
        check_done(output)
        _, task, metric = expected[output.name]
        assert metric in results_of(output)[f"{output.name}_val"][task]
