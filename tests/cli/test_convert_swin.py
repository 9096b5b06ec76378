"""tools/convert_pretrained_swin_model_to_d2.py: our backbone loads a Swin's official weights."""

import pytest
import torch
import yaml
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.cli import convert_swin as tool

OUT_NORMS = [f"norm{stage}." for stage in range(4)]


def build(cfg):
    return torch.nn.ModuleDict({"backbone": build_backbone(cfg, ShapeSpec(channels=3))}).eval()


@pytest.fixture(params=[False, True], ids=["", "ape"])
def swin(request, cfg):
    """Build a small Swin with random weights, including norms and position biases."""
    cfg.MODEL.BACKBONE.NAME = "D2SwinTransformer"
    swin = {"EMBED_DIM": 8, "DEPTHS": [2, 1, 3, 1], "NUM_HEADS": [1, 2, 2, 4], "WINDOW_SIZE": 4}
    if request.param:
        swin.update(APE=True, PRETRAIN_IMG_SIZE=64)
    for key, value in swin.items():
        cfg.MODEL.SWIN[key] = value
    torch.manual_seed(0)
    model = build(cfg)
    for value in model.parameters():
        torch.nn.init.normal_(value, std=0.3)
    return cfg, model


def official(model):
    """Return the state dict of a backbone in the format of the official ImageNet checkpoints."""
    weights = model["backbone"].state_dict()
    weights = {k: v for k, v in weights.items() if not k.startswith(tuple(OUT_NORMS))}
    if "absolute_pos_embed" in weights:  # officially 1×HW×C
        weights["absolute_pos_embed"] = weights["absolute_pos_embed"].flatten(2).mT
    weights["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    for name, shape in (("norm", (64,)), ("head", (1000, 64))):
        weights[f"{name}.weight"], weights[f"{name}.bias"] = (
            torch.ones(shape),
            torch.zeros(shape[0]),
        )
    return weights


def run(checkpoint, output):
    return tool.main(["--checkpoint", str(checkpoint), "--output", str(output)])


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".safetensors"])
def test_the_printed_config_and_the_file_give_the_same_maps(swin, suffix, tmp_path, capsys, caplog):
    cfg, source = swin
    checkpoint, output = tmp_path / "swin.pth", tmp_path / "new" / f"swin{suffix}"
    torch.save({"model": official(source)}, checkpoint)
    assert run(checkpoint, output) == 0
    _, _, text = capsys.readouterr().out.partition("\n\n")
    settings = yaml.safe_load(text)
    swin_keys = settings["MODEL"]["SWIN"]
    assert {key: cfg.MODEL.SWIN[key] for key in swin_keys} == swin_keys
    assert ("APE" in swin_keys) is cfg.MODEL.SWIN.APE
    cfg.merge_from_other_cfg(type(cfg)(settings))
    model = build(cfg)
    with caplog.at_level("INFO"):
        Checkpointer(model).load(cfg.MODEL.WEIGHTS)
    # Only the norms of the output maps are missing: classification does not use them.
    lines = caplog.records[-1].message.splitlines()
    count = len(model.state_dict())
    assert lines[0] == f"{output}: loaded {count - 8} of the model's {count} tensors."
    assert lines[1:] == ["  missing in the file, unchanged:"] + [
        f"    backbone.{name}* (2)" for name in OUT_NORMS
    ]
    norms = {k: v for k, v in source.state_dict().items() if ".norm" in k and k.count(".") == 2}
    model.load_state_dict(norms, strict=False)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = model["backbone"](image), source["backbone"](image)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("swin", [False], indirect=True)
def test_each_mistake_is_an_error_of_one_line_and_exit_code_1(swin, tmp_path, capsys):
    weights = official(swin[1])
    files = {
        "good.pth": weights,
        "other.pth": {"features.0.weight": torch.zeros(1)},
        "timm.pth": {**weights, "layers.3.downsample.norm.weight": torch.zeros(1)},
    }
    for name, content in files.items():
        torch.save({"model": content}, tmp_path / name)
    output = tmp_path / "swin.pkl"
    cases = [
        ("other.pth", output, "other.pth is not an official Swin", "features.0.weight"),
        ("timm.pth", output, "timm.pth has timm's layout"),
        ("absent.pth", output, "There is no checkpoint", "absent.pth"),
        ("good.pth", tmp_path / "x.bin", "x.bin; it must end in .safetensors"),
    ]
    for name, path, *expected in cases:
        assert run(tmp_path / name, path) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert [text for text in expected if text not in error] == []
        assert not path.exists()


@pytest.mark.parametrize("swin", [False], indirect=True)
def test_loading_an_official_file_is_an_error_that_names_the_tool(swin, tmp_path):
    torch.save({"model": official(swin[1])}, tmp_path / "swin.pth")
    with pytest.raises(ValueError, match=r"convert_pretrained_swin_model_to_d2\.py"):
        Checkpointer(swin[1]).load(str(tmp_path / "swin.pth"))
