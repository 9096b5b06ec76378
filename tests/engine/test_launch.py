"""The processes of a command see the devices that its config names."""

from __future__ import annotations

import argparse
import os

import pytest
import torch

from mask_former.engine import launch as launch_module
from mask_former.engine.launch import run


def with_gpu(monkeypatch, there):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)


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
    # detectron2's `launch` takes NCCL where it sees a GPU, and that moves no CPU tensor.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with_gpu(monkeypatch, True)
    seen = []

    def launch(*_, **__):
        seen.append(os.environ["CUDA_VISIBLE_DEVICES"])

    monkeypatch.setattr(launch_module, "launch", launch)
    machines = {"num_gpus": 2, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
    config_file = tmp_path / "x.yaml"
    config_file.write_text(content)
    run(print, argparse.Namespace(config_file=str(config_file), opts=opts, **machines))
    assert seen == ["0,1" if sees_gpus else ""]


def test_a_mistake_in_the_config_is_found_before_any_process_starts(monkeypatch):
    monkeypatch.setattr(launch_module, "launch", lambda *_, **__: pytest.fail("it was started"))
    with pytest.raises(KeyError, match="there is no config key SEEED"):
        run(print, argparse.Namespace(config_file="", opts=["SEEED", "1"]))
