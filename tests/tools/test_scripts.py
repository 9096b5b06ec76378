"""The published script names run the commands of mask_former/cli."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.scripts import load_script

COMMANDS = {
    "check_dataset": "check_dataset",
    "convert_hf_maskformer": "convert_hf_maskformer",
    "convert_pretrained_swin_model_to_d2": "convert_swin",
    "convert_timm_to_d2": "convert_timm",
    "convert_torchvision_to_d2": "convert_torchvision",
    "evaluate_pq_for_semantic_segmentation": "evaluate_pq",
    "export": "export",
    "predict_folder": "predict_folder",
    "publish_weights": "publish_weights",
    "train_net": "train",
    "visualize_data": "visualize_data",
}
"""Script -> module of its command."""


@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_runs_its_command(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(ROOT / "tools" / f"{script}.py")
    monkeypatch.setattr(sys, "argv", [file, "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(file, run_name="__main__")
    assert end.value.code == 0
    help_text = capsys.readouterr().out
    assert help_text.startswith(f"usage: {script}.py ")
    command = sys.modules[f"mask_former.cli.{COMMANDS[script]}"]
    assert command.__doc__ and command.__doc__.strip() in help_text
    assert f"tools/{script}.py" in help_text, "the help lacks an example of the command line"


REQUIRED = {
    "check_dataset": "--dataset x",
    "convert_hf_maskformer": "folder --output x",
    "evaluate_pq_for_semantic_segmentation": "--dataset x --predictions x",
    "export": "--config-file x --output x",
    "publish_weights": "x.pth x.safetensors",
    "visualize_data": "--config-file x --output x",
    "analyze_model": "--config-file x",
    "benchmark": "--config-file x",
}
"""The required arguments of each command that has ``--plugin``."""


@pytest.mark.parametrize("script", REQUIRED)
def test_a_command_loads_plugins_before_it_reads_anything_else(
    script: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if script in COMMANDS:
        command = importlib.import_module(f"mask_former.cli.{COMMANDS[script]}")
    else:
        command = load_script(f"tools/{script}.py")
    plugin = tmp_path / "part.py"
    plugin.write_text("raise LookupError('no luck')\n")
    assert command.main(["--plugin", str(plugin), *REQUIRED[script].split()]) == 1
    assert "part.py cannot be imported: line 1: LookupError: no luck" in capsys.readouterr().err
