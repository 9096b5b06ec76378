"""EoMT on a custom dataset: one command, with configs/custom/eomt_*.yaml."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask_former.config.loading import load_cfg
from mask_former.config.validation import validate
from tests.helpers.own_data import write_instances, write_panoptic, write_semantic_folder
from tests.helpers.train_net_runs import (
    SCRIPT,
    SMALL_RUN,
    check_done,
    config_path,
    pairs,
    results_of,
    run_in_turn,
)
from tests.helpers.train_net_runs import environment as environment_of

MAPPERS = {
    "semantic": "mask_former_semantic_lsj",
    "instance": "coco_instance_lsj",
    "panoptic": "coco_panoptic_lsj",
}
SMALL = {
    **SMALL_RUN,
    "MODEL.EOMT.VIT": "test_vit",
    "MODEL.EOMT.IMAGE_SIZE": [64, 64],
    "INPUT.IMAGE_SIZE": 64,
    "SOLVER.WARMUP_STEPS": [0, 0],
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,  # the model is hardly trained
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
}


@pytest.mark.parametrize("task", MAPPERS)
def test_each_config_is_valid_and_starts_with_its_command(task: str) -> None:
    path = config_path(f"custom/eomt_{task}.yaml")
    cfg = load_cfg(str(path), ["MODEL.DEVICE", "cpu"])
    validate(cfg)
    assert MAPPERS[task] == cfg.INPUT.DATASET_MAPPER_NAME
    on = [t for t in ("SEMANTIC", "PANOPTIC", "INSTANCE") if cfg.MODEL.MASK_FORMER.TEST[f"{t}_ON"]]
    assert on == [task.upper()]
    assert f"output/custom_eomt_{task}" == cfg.OUTPUT_DIR
    assert [cfg.INPUT.IMAGE_SIZE] * 2 == cfg.MODEL.EOMT.IMAGE_SIZE
    command = f"tools/train_net.py --config-file configs/custom/eomt_{task}.yaml"
    assert command in path.read_text().split("_BASE_")[0]


@pytest.mark.subprocess
def test_one_command_trains_and_evaluates_on_each_kind_of_annotation(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    write_semantic_folder(tmp_path / "s", (0, 255), count=3)
    (tmp_path / "classes.txt").write_text("255: dog\n0: ground\n")
    write_instances(tmp_path / "n")
    write_panoptic(tmp_path / "p")
    words = {
        "semantic": "--{0}-images s/i --{0}-labels s/l",
        "instance": "--{0}-images n/i --{0}-json n/x.json",
        "panoptic": "--{0}-images p/i --{0}-json p/x.json --{0}-panoptic p/p",
    }
    more = {"semantic": ["--classes", "classes.txt"]}
    windows = {"semantic": {"TEST.SLIDING_WINDOW.SIZE": 64}}
    runs = {}
    for task, data in words.items():
        output, config = tmp_path / task, str(config_path(f"custom/eomt_{task}.yaml"))
        given = [*data.format("train").split(), *data.format("val").split(), "--name", task]
        keys = pairs({**SMALL, **windows.get(task, {}), "OUTPUT_DIR": output})
        runs[output] = [str(SCRIPT), "--config-file", config, *given, *more.get(task, []), *keys]
    run_in_turn(runs, cwd=tmp_path, environment=environment_of(tmp_path))
    metrics = [("sem_seg", "IoU-dog"), ("segm", "AP-dog"), ("panoptic_seg", "PQ")]
    for output, (kind, metric) in zip(runs, metrics, strict=True):
        check_done(output)
        assert metric in results_of(output)[f"{output.name}_val"][kind]
        config = load_cfg(str(output / "config.yaml"), [])
        assert MAPPERS[output.name] == config.INPUT.DATASET_MAPPER_NAME
