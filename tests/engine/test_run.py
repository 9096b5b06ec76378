"""``train`` and ``evaluate``: the files in a run's folder, and how later runs use them."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from mask_former.config.loading import load_cfg, read_cfg
from mask_former.engine import Trainer, evaluate, train
from mask_former.engine.folder_lock import training_alone_in
from mask_former.predictor.predictor import MaskFormerPredictor
from mask_former.registries import load_plugin
from tests.helpers.own_data import write_semantic_folder
from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins
from tests.helpers.tiny_model import NAMES, write_tiny_model
from tests.helpers.train_net_runs import pairs, results_of
from tests.robustness.isolation import Process, isolated
from tests.robustness.malice import NAME as HOSTILE_NAME
from tests.robustness.malice import assert_harmless

SHORT = {
    "MODEL.DEVICE": "cuda",  # hidden by the fixture below
    "DATASETS.TRAIN": ("run_train",),
    "DATASETS.TEST": ("run_val",),
    "INPUT.MIN_SIZE_TRAIN": (64,),
    "DATALOADER.NUM_WORKERS": 0,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.MAX_ITER": 1,
    "SEED": 1,
}


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hide all GPUs, and restore the dataset catalogs after the test."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = dict(DatasetCatalog.data), dict(MetadataCatalog.data)
    yield
    DatasetCatalog.data, MetadataCatalog.data = before


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """The config of a tiny model with weights, and a table of two datasets in another folder."""
    path, weights = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    write_semantic_folder(tmp_path / "data", (0, 1))
    dataset = {"kind": "sem_seg", "image_root": "../data/i", "sem_seg_root": "../data/l"}
    table = {"datasets": {"run_train": dataset, "run_val": dataset}}
    table["categories"] = [{"name": name} for name in NAMES]
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "run.json").write_text(json.dumps(table))
    settings = {"MODEL.WEIGHTS": weights, "DATASETS.TABLES": [str(tmp_path / "tables/run.json")]}
    cfg = read_cfg(str(path), pairs({**SHORT, **settings}))
    path.write_text(cfg.dump())
    return path


def read(config: Path, **settings: Any) -> CfgNode:
    """Read a config; ``A__B=1`` sets the key ``A.B``."""
    keys = {name.replace("__", "."): value for name, value in settings.items()}
    return read_cfg(str(config), pairs(keys))


# Files of a training run


def test_train_returns_metrics_and_writes_config_log_and_model(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    results = train(read(config, OUTPUT_DIR=output))
    assert "mIoU" in results["sem_seg"]
    assert json.loads((output / "results.json").read_text()).keys() == {"run_val"}
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 0
    assert load_cfg(str(output / "config.yaml")).SOLVER.MAX_ITER == 1
    log = (output / "log.txt").read_text()
    assert "Starting training from iteration 0" in log and "total_loss" in log
    assert "Starting training from iteration 0" in capsys.readouterr().out


def test_the_log_lists_changed_settings_once_and_in_plain_text(
    config: Path, tmp_path: Path
) -> None:
    train(read(config, OUTPUT_DIR=tmp_path / "out", DATASETS__TEST="()"))
    lines = (tmp_path / "out" / "log.txt").read_text().splitlines()
    assert "\x1b" not in "".join(lines) and len(lines) < 150
    assert [line.strip() for line in lines if "SOLVER.IMS_PER_BATCH" in line] == [
        "SOLVER.IMS_PER_BATCH: 2"
    ]
    assert not [line for line in lines if "SOLVER.GAMMA" in line]  # a default


def test_each_training_of_a_process_logs_each_line_once_in_its_own_folder(
    config: Path, tmp_path: Path
) -> None:
    loggers = [logging.getLogger(name) for name in ("mask_former", "detectron2", "fvcore")]
    before = [(list(logger.handlers), logger.propagate) for logger in loggers]
    for name in ("one", "two", "one"):
        train(read(config, OUTPUT_DIR=tmp_path / name, DATASETS__TEST="()"))
        assert [(logger.handlers, logger.propagate) for logger in loggers] == before
    counts = [
        (tmp_path / name / "log.txt").read_text().count("Starting training")
        for name in ("one", "two")
    ]
    assert counts == [2, 1]


def test_a_trainer_built_by_hand_falls_back_to_the_cpu_and_writes_its_config(
    config: Path, tmp_path: Path
) -> None:
    trainer = Trainer(load_cfg(str(config), pairs({"OUTPUT_DIR": tmp_path / "out"})))
    trainer.resume_or_load(resume=False)
    assert "mIoU" in trainer.train()["sem_seg"]
    assert next(trainer.model.parameters()).device.type == "cpu"
    assert (tmp_path / "out" / "config.yaml").is_file()


def test_the_saved_config_names_the_plugins_that_it_needs(config: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "finest_map.py"
    plugin.write_text(FINEST_MAP_DECODER)
    with forgetting_plugins():
        load_plugin(plugin)
        cfg = read(config, OUTPUT_DIR=tmp_path, MODEL__FINEST_MAP__KERNEL=1, DATASETS__TEST="()")
        train(cfg)
    text = (tmp_path / "config.yaml").read_text()
    assert text.startswith("# needs --plugin finest_map.py\n")
    assert yaml.safe_load(text)["MODEL"]["FINEST_MAP"]["KERNEL"] == 1


def test_names_of_classes_neither_forge_lines_of_the_log_nor_command_the_terminal(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "tables" / "run.json"
    content = json.loads(table.read_text())
    content["categories"][0]["name"] = HOSTILE_NAME
    table.write_text(json.dumps(content))
    train(read(config, OUTPUT_DIR=tmp_path / "out"))
    output, log = "".join(capsys.readouterr()), (tmp_path / "out" / "log.txt").read_text()
    for text in (output, log):
        assert_harmless(text)
    assert r"\x1b[2J" in log  # the table of the evaluation names the class


def test_a_second_training_in_the_folder_is_refused_and_an_evaluation_is_not(
    config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    train(read(config, OUTPUT_DIR=output, DATASETS__TEST="()"))
    running = Process(_train_in, output)
    while not isolated(_is_locked, output).value:
        time.sleep(0.05)
    try:
        with pytest.raises(ValueError, match=f"process {running.pid} on "):
            train(read(config, OUTPUT_DIR=output), resume=True)
        cfg = read(config, OUTPUT_DIR=output, MODEL__WEIGHTS=output / "model_final.pth")
        assert "mIoU" in evaluate(cfg)["sem_seg"]
    finally:
        running.kill()
        running.outcome()


def _train_in(folder: Path) -> None:
    with training_alone_in(folder):
        time.sleep(60)


def _is_locked(folder: Path) -> bool:
    try:
        with training_alone_in(folder):
            return False
    except ValueError:
        return True


# The device


def test_the_saved_config_keeps_the_requested_device(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    train(read(config, OUTPUT_DIR=output))
    log = (output / "log.txt").read_text()
    assert log.count("MODEL.DEVICE is 'cuda', but there is no GPU: using the CPU.") == 1
    assert yaml.safe_load((output / "config.yaml").read_text())["MODEL"]["DEVICE"] == "cuda"
    assert MaskFormerPredictor.from_pretrained(output).device.type == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises((AssertionError, RuntimeError), match=r"(?i)cuda|nvidia"):
        MaskFormerPredictor.from_pretrained(output)  # it tries the GPU


def test_a_requested_cpu_stays_in_the_saved_config(config: Path, tmp_path: Path) -> None:
    train(read(config, OUTPUT_DIR=tmp_path / "out", MODEL__DEVICE="cpu", DATASETS__TEST="()"))
    assert load_cfg(str(tmp_path / "out" / "config.yaml")).MODEL.DEVICE == "cpu"


# Evaluation


def test_an_evaluation_does_not_change_the_config_of_the_training(
    config: Path, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    train(read(config, OUTPUT_DIR=output))
    results, saved = results_of(output), output / "config.yaml"
    before = saved.read_bytes()
    weights = output / "model_final.pth"
    evaluate(read(saved, MODEL__WEIGHTS=weights, TEST__SAVE_PREDICTIONS=False))
    assert results_of(output) == results
    assert saved.read_bytes() == before
    # Therefore the same training starts again from the same weights.
    original = str(tmp_path / "tiny.pth")
    assert original == load_cfg(str(saved)).MODEL.WEIGHTS
    again = tmp_path / "again"
    train(read(saved, OUTPUT_DIR=again))
    assert results_of(again) == results
    assert f"{original}: loaded" in (again / "log.txt").read_text()


def test_an_evaluation_without_training_writes_no_config(config: Path, tmp_path: Path) -> None:
    assert "mIoU" in evaluate(read(config, OUTPUT_DIR=tmp_path / "out"))["sem_seg"]
    saved = {path.name for path in (tmp_path / "out").iterdir()}
    assert saved == {"log.txt", "results.json", "inference"}


# Moved folders


def test_a_moved_folder_can_train_evaluate_and_predict(config: Path, tmp_path: Path) -> None:
    first, moved, again = (tmp_path / name for name in ("first", "moved", "again"))
    train(read(config, OUTPUT_DIR=first))
    results = results_of(first)
    shutil.move(first, moved)
    shutil.rmtree(tmp_path / "tables")  # the run has its own copy
    train(read(moved / "config.yaml", OUTPUT_DIR=again))
    assert results_of(again) == results
    assert yaml.safe_load((again / "config.yaml").read_text())["DATASETS"]["TABLES"] == ["run.json"]
    shutil.rmtree(moved)
    cfg = read(again / "config.yaml", OUTPUT_DIR=again, MODEL__WEIGHTS=again / "model_final.pth")
    (again / "results.json").unlink()
    evaluate(cfg)
    assert results_of(again) == results
    predictor = MaskFormerPredictor.from_pretrained(again)
    assert predictor.classes.names == NAMES
    assert predictor(tmp_path / "data" / "i" / "0.jpg").semantic is not None


def test_weights_in_the_output_folder_move_with_it(config: Path, tmp_path: Path) -> None:
    first, moved, again = (tmp_path / name for name in ("first", "moved", "again"))
    first.mkdir()
    shutil.copy(tmp_path / "tiny.pth", first / "start.pth")
    cfg = read(config, OUTPUT_DIR=first, MODEL__WEIGHTS=first / "start.pth", DATASETS__TEST="()")
    train(cfg)
    shutil.move(first, moved)
    (tmp_path / "tiny.pth").unlink()
    train(read(moved / "config.yaml", OUTPUT_DIR=again))
    assert f"{moved / 'start.pth'}: loaded" in (again / "log.txt").read_text()
