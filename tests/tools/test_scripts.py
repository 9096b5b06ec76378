"""The published script names run the commands of mask_former/cli."""

from __future__ import annotations

import runpy
import sys

import pytest

from tests.helpers.paths import ROOT

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
    "visualize_data": "visualize_data",
}
"""The module of each script's command."""


@pytest.mark.parametrize("script", COMMANDS)
def test_a_script_is_its_command(
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
    assert f"tools/{script}.py" in help_text, "the help shows how the script is used"
