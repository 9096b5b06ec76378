"""Loading EoMT from official files, those of transformers, whole ViTs and differences."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.checkpoint.eomt_delta import add_base_weights
from mask_former.checkpoint.eomt_names import to_official, to_transformers
from mask_former.checkpoint.eomt_weights import fit_vit
from mask_former.cli.convert_eomt import main
from mask_former.utils.weight_files import read_checkpoint, write_weights
from tests.helpers.golden_cases import random_weight
from tests.helpers.paths import GOLDEN
from tests.helpers.tiny_networks import tiny_eomt

timm = pytest.importorskip("timm")

ROTARY = "vit_tiny_patch16_dinov3_qkvb"


@pytest.mark.parametrize("rename", [dict, to_official, to_transformers])
def test_a_checkpoint_of_each_form_loads_whole(rename, tmp_path) -> None:
    source, model = tiny_eomt(), tiny_eomt()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.normal_()
    source.sem_seg_head.set_progress(600, 600)
    state = {f"{k}": v for k, v in rename(source.state_dict()).items()}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    Checkpointer(model, whole=True).load(str(tmp_path / "model.ckpt"))
    for name, value in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert model.sem_seg_head.attn_mask_probs.tolist() == [0, 0, 0]


def test_names_of_compiled_modules_are_those_of_the_modules() -> None:
    model = tiny_eomt()
    state = to_official(model.state_dict())
    state = {name.replace("network.", "network._orig_mod."): v for name, v in state.items()}
    assert fit_vit(state, model, "file").keys() >= set(model.state_dict())


def test_patches_of_another_size_are_resampled_as_timm_does(caplog) -> None:
    with np.load(GOLDEN / "eomt_loading.npz") as arrays:
        expected = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    model = tiny_eomt(["MODEL.EOMT.IMAGE_SIZE", [128, 160]], vit="vit_small_patch14_reg4_dinov2")
    old = {f"backbone.vit.{k}": v for k, v in timm_weights().items()}
    with caplog.at_level(logging.INFO):
        found = fit_vit(old, model, "file")
    step = 64  # the golden values are those of every 64th channel
    positions = found["backbone.vit.pos_embed"][..., ::step]
    torch.testing.assert_close(positions, expected["pos_embed"], atol=1e-5, rtol=1e-5)
    kernel = found["backbone.vit.patch_embed.proj.weight"][::step]
    torch.testing.assert_close(kernel, expected["kernel"], atol=1e-5, rtol=1e-5)
    assert caplog.text.count("37×37 patches, was resampled to 8×10") == 1


def timm_weights() -> dict[str, torch.Tensor]:
    """Make the weights from which the golden values were computed."""
    shapes = {"pos_embed": (1, 1369, 384), "patch_embed.proj.weight": (384, 3, 14, 14)}
    return {name: random_weight(f"timm.{name}", shape) for name, shape in shapes.items()}


def test_a_position_embedding_without_a_square_grid_is_refused() -> None:
    weights = {"backbone.vit.pos_embed": torch.zeros(1, 1 + 15, 64)}
    with pytest.raises(ValueError, match=r"file: .*pos_embed has shape \(1, 16, 64\).*square"):
        fit_vit(weights, tiny_eomt(), "file")


def base_of(official: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return weights of a DINOv3 with the names of transformers."""
    prefix = "network.encoder.backbone."
    names = (("patch_embed.", "embeddings."), ("blocks.", "layer."), ("norm.", "norm."))
    base = {}
    for name, value in official.items():
        for old, new in names:
            if name.startswith(prefix + old):
                base[new + name.removeprefix(prefix + old)] = torch.randn_like(value)
    return base


def test_differences_to_dinov3_need_its_weights_and_become_whole(tmp_path, capsys) -> None:
    model = tiny_eomt(vit=ROTARY)
    official = to_official(model.state_dict())
    base = base_of(official)
    with pytest.raises(ValueError, match=r"file: .* differences .* tools/convert_eomt\.py"):
        fit_vit(official, model, "file")
    files = {name: tmp_path / f"{name}.safetensors" for name in ("delta", "base", "whole")}
    write_weights(official, files["delta"])
    write_weights(base, files["base"])
    arguments = [str(files["delta"]), "--base", str(files["base"]), "--output", str(files["whole"])]
    assert main([str(files["delta"]), "--output", str(files["whole"])]) == 1
    assert "name those of DINOv3 with --base" in capsys.readouterr().err
    assert main(arguments) == 0
    found = read_checkpoint(files["whole"])["model"]
    name = "sem_seg_head.blocks.0.mlp.fc1.bias"
    expected = model.state_dict()[name] + base["layer.9.mlp.up_proj.bias"]
    assert torch.equal(found[name], expected)
    for name in ("sem_seg_head.q.weight", "sem_seg_head.class_head.bias"):
        assert torch.equal(found[name], model.state_dict()[name])
    assert found["sem_seg_head.attn_mask_probs"].tolist() == [0, 0, 0]
    assert main([str(files["base"]), "--output", str(files["whole"])]) == 1
    assert "is not an EoMT" in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["missing", "shape", "dinov2"])
def test_base_weights_that_do_not_fit_are_named(broken: str) -> None:
    official = to_official(tiny_eomt(vit=ROTARY if broken != "dinov2" else "test_vit").state_dict())
    base, name = base_of(official), "layer.2.norm1.bias"
    if broken == "missing":
        del base[name]
    elif broken == "shape":
        base[name] = torch.zeros(3)
    message = (
        "not a published EoMT for a DINOv3" if broken == "dinov2" else r"layer\.2\.norm1\.bias"
    )
    with pytest.raises(ValueError, match=message):
        add_base_weights(official, base)


def test_a_model_written_in_the_official_form_can_be_read_again(tmp_path) -> None:
    model = tiny_eomt(vit=ROTARY)
    write_weights(model.state_dict(), tmp_path / "ours.safetensors")
    official, again = tmp_path / "pytorch_model.bin", tmp_path / "again.pth"
    command = [str(tmp_path / "ours.safetensors"), "--to", "official", "--output", str(official)]
    assert main(command) == 0
    assert torch.load(official).keys() == to_official(model.state_dict()).keys()
    assert main([str(official), "--whole", "--output", str(again)]) == 0
    found = read_checkpoint(again)["model"]
    for name, value in model.state_dict().items():
        if not name.endswith(".k_bias"):
            assert torch.equal(found[name], value), name


def test_another_number_of_blocks_in_the_head_is_refused_with_the_key() -> None:
    weights = tiny_eomt(["MODEL.EOMT.NUM_BLOCKS", 2]).state_dict()
    with pytest.raises(ValueError, match=r"file: .*2 blocks .* MODEL\.EOMT\.NUM_BLOCKS is 3: set"):
        fit_vit(weights, tiny_eomt(), "file")
