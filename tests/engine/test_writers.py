"""Scalars and images reach the configured LOGGERS, the log, and a metrics file that a kill left."""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter

from mask_former.config.loading import load_cfg
from mask_former.engine.writers import (
    CpuMetricPrinter,
    WandbWriter,
    build_writers,
    repair_metrics_file,
)
from tests.helpers.tiny_trainer import TinyTrainer


class Wandb(SimpleNamespace):
    """A stand-in for the package wandb that records its calls."""

    def __init__(self):
        super().__init__(logged=[], settings=None, finished=False)

    def init(self, **settings):
        self.settings = settings
        return self

    def log(self, entries, step):
        self.logged.append((step, entries))

    def finish(self):
        self.finished = True

    def Image(self, array):
        return array.shape


@pytest.fixture
def wandb(monkeypatch):
    stand_in = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    return stand_in


def kinds(cfg):
    return [type(writer) for writer in build_writers(cfg, 1)[1:]]


def test_each_logger_has_its_writer_and_wandbs_precedes_tensorboards(config, wandb):
    assert kinds(config()) == [JSONWriter, TensorboardXWriter]
    assert kinds(config("LOGGERS", ["json"])) == [JSONWriter]
    every = ["tensorboard", "wandb", "json"]
    assert kinds(config("LOGGERS", every)) == [JSONWriter, WandbWriter, TensorboardXWriter]


def test_the_error_for_an_unknown_logger_lists_the_known_ones(config):
    with pytest.raises(
        ValueError, match=r"LOGGERS has 'comet'; expected some of json, tensorboard, wandb"
    ):
        TinyTrainer(config("LOGGERS", ["json", "comet"]))


def test_a_logger_that_is_not_installed_is_an_error_before_training(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"LOGGERS has 'wandb'.*pip install wandb"):
        TinyTrainer(config("LOGGERS", ["wandb"]))


def test_wandb_receives_each_scalar_and_image_once(config, wandb):
    writer = WandbWriter(config("LOGGERS", ["wandb"]))
    assert wandb.settings["name"] == "output" and wandb.settings["config"]["SEED"] == 3
    with EventStorage(0) as storage:
        storage.put_scalar("lr", 0.5, smoothing_hint=False)
        storage.put_image("predictions/0", np.zeros((3, 4, 5), np.uint8))
        writer.write()
        writer.write()
        storage.step()
        storage.put_scalar("lr", 0.25, smoothing_hint=False)
        writer.write()
    writer.close()
    assert wandb.logged == [(0, {"lr": 0.5, "predictions/0": (4, 5, 3)}), (1, {"lr": 0.25})]
    assert wandb.finished


# The metrics file after a kill, and the line of the log

LINE = '{"iteration": 19, "total_loss": 1.5}'


@pytest.mark.parametrize(
    "content, repaired",
    [
        (f"{LINE}\n{LINE}\n", f"{LINE}\n{LINE}\n"),
        (f"{LINE}\n{LINE[:12]}", f"{LINE}\n"),
        (f"{LINE}\n{{", f"{LINE}\n"),
        (LINE[:12], ""),
        (f"{LINE}\n{LINE}", f"{LINE}\n{LINE}\n"),  # only the line break is missing
        ("", ""),
    ],
)
def test_an_unfinished_last_line_is_removed(tmp_path, content, repaired):
    path = tmp_path / "metrics.json"
    path.write_text(content)
    for _ in range(2):  # idempotent
        repair_metrics_file(path)
        assert path.read_text() == repaired
    with path.open("a") as file:
        file.write(f"{LINE}\n")
    for line in path.read_text().splitlines():
        assert json.loads(line)["iteration"] == 19


def test_a_writer_with_the_file_open_appends_after_the_complete_lines(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(f"{LINE}\n{LINE[:9]}")
    with path.open("a") as file:
        repair_metrics_file(path)
        file.write(f"{LINE}\n")
    assert path.read_text() == f"{LINE}\n{LINE}\n"


def test_a_missing_metrics_file_is_not_created(tmp_path):
    repair_metrics_file(tmp_path / "metrics.json")
    assert not list(tmp_path.iterdir())


def test_the_log_line_shows_losses_speed_eta_and_memory(caplog, monkeypatch):
    caplog.set_level(logging.INFO, logger="detectron2.utils.events")
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)
    with EventStorage(4) as storage:
        storage.put_scalars(total_loss=2.5, time=3.0, data_time=0.5, lr=0.25)
        CpuMetricPrinter(max_iter=25).write()
    (message,) = [record.getMessage() for record in caplog.records]
    for text in ("eta: 0:01:00", "iter: 4", "total_loss: 2.5", "time: 3.0", "lr: 0.25"):
        assert text in message
    megabytes = int(re.search(r"max_mem: (\d+)M$", message)[1])
    assert 50 < megabytes < 50_000


def test_a_pipe_in_place_of_the_metrics_is_refused(tmp_path):
    os.mkfifo(tmp_path / "metrics.json")
    cfg = load_cfg("", ["OUTPUT_DIR", str(tmp_path)])
    with pytest.raises(ValueError, match=r"metrics\.json was refused: it is a named pipe"):
        build_writers(cfg, 1)
