"""Launched processes see only the devices of their config, and load the parent's plugins."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch

from mask_former.engine import launch as launch_module
from mask_former.engine.launch import JobArguments, run
from mask_former.registries import load_plugin, loaded_plugins
from tests.helpers.plugins import FINEST_MAP_DECODER, forgetting_plugins


def with_gpu(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)


@pytest.mark.parametrize(
    "content, opts, sees_gpus",
    [
        ("MODEL: {DEVICE: cpu}\n", [], False),
        ("MODEL: {DEVICE: cuda}\n", [], True),
        ("MODEL: {DEVICE: cuda}\n", ["MODEL.DEVICE", "cpu"], False),
        ("MODEL: {DEVICE: cpu}\n", ["MODEL.DEVICE", "cuda"], True),
        ("SEED: 1\n", ["OUTPUT_DIR", "cpu"], True),  # a folder of that name
    ],
)
def test_cpu_processes_see_no_gpu_wherever_the_device_is_named(
    tmp_path, monkeypatch, content, opts, sees_gpus
):
    # detectron2's `launch` uses NCCL if it sees a GPU; NCCL cannot send CPU tensors.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with_gpu(monkeypatch, True)
    seen = []

    def launch(*_, **__):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(launch_module, "launch", launch)
    config_file = tmp_path / "x.yaml"
    config_file.write_text(content)
    run(print, JobArguments(config_file=str(config_file), opts=opts, num_gpus=2))
    assert seen == ["0,1" if sees_gpus else ""]


def test_a_mistake_in_the_config_is_found_before_any_process_starts(monkeypatch):
    monkeypatch.setattr(
        launch_module, "launch", lambda *_, **__: pytest.fail("a process was started")
    )
    with pytest.raises(KeyError, match="there is no config key SEEED"):
        run(print, JobArguments(config_file="", opts=["SEEED", "1"]))


def test_a_spawned_process_has_the_plugins_of_its_parent(tmp_path, monkeypatch):
    plugin = tmp_path / "finest_map.py"
    plugin.write_text(FINEST_MAP_DECODER)
    spawned = []

    def launch(function, *_, args, **__):
        spawned.append(partial(function, *args))

    monkeypatch.setattr(launch_module, "launch", launch)
    with forgetting_plugins():
        load_plugin(plugin)
        run(lambda _: loaded_plugins(), JobArguments(config_file="", num_gpus=2))
    with forgetting_plugins():  # as in a new process
        assert loaded_plugins() == ()
        assert spawned[0]() == (plugin,)
