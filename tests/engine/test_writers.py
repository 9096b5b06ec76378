"""Scalars and images are written to the configured LOGGERS."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter, TensorboardXWriter

from mask_former.engine.writers import WandbWriter, build_writers
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
