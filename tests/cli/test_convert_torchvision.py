"""tools/convert_torchvision_to_d2.py: a converted ResNet gives torchvision's feature maps."""

import pytest
import torch
import torchvision
import yaml
from detectron2.modeling import build_backbone
from safetensors.torch import save_file

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.cli import convert_torchvision as tool


def torchvision_model(name):
    """Build a torchvision model with random weights, including norms."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name, num_classes=3).eval()
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if "running_var" in key or (value.ndim == 1 and key.endswith("weight")):
                value.uniform_(0.5, 1.5)
            elif "running_mean" in key or key.endswith("bias"):
                value.normal_(std=0.1)
    return model


@pytest.fixture(scope="module")
def resnet18():
    return torchvision_model("resnet18")


def run(*arguments):
    return tool.main([str(argument) for argument in arguments])


def stages_of(model, image):
    """Return the outputs of the four stages of torchvision's model."""
    x = model.maxpool(model.relu(model.bn1(model.conv1(image))))
    maps = {}
    for stage, layer in enumerate((model.layer1, model.layer2, model.layer3, model.layer4)):
        x = maps[f"res{stage + 2}"] = layer(x)
    return maps


@pytest.mark.parametrize(
    "name, suffix",
    [
        ("resnet18", ".safetensors"),
        ("resnet50", ".pkl"),
        ("resnext50_32x4d", ".pth"),
    ],
)
def test_the_printed_config_and_the_file_give_torchvisions_maps(
    name, suffix, cfg, tmp_path, capsys, caplog
):
    model, output = torchvision_model(name), tmp_path / "new" / f"backbone{suffix}"
    torch.save(model.state_dict(), tmp_path / "torchvision.pth")
    assert run("--checkpoint", tmp_path / "torchvision.pth", "--output", output) == 0
    first, _, text = capsys.readouterr().out.partition("\n\n")
    cfg.merge_from_other_cfg(type(cfg)(yaml.safe_load(text)))
    assert str(output) == cfg.MODEL.WEIGHTS
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    whole = torch.nn.ModuleDict({"backbone": build_backbone(cfg)}).eval()
    with caplog.at_level("INFO"):
        Checkpointer(whole, whole=True).load(cfg.MODEL.WEIGHTS)
    count = len(whole.state_dict())
    assert f"loaded {count} of the model's {count} tensors." in caplog.text
    assert first == f"{output}: {count} entries of {tmp_path / 'torchvision.pth'}. In the config:"
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found, expected = whole["backbone"](image), stages_of(model, image)
    assert list(found) == list(expected)
    for stage in expected:
        scale = expected[stage].abs().max()
        assert scale > 0.1
        torch.testing.assert_close(found[stage] / scale, expected[stage] / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "name, settings",
    [
        ("resnet34", {"DEPTH": 34, "RES2_OUT_CHANNELS": 64}),
        ("resnet101", {"DEPTH": 101}),
        ("resnet152", {"DEPTH": 152}),
        ("wide_resnet101_2", {"DEPTH": 101, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 128}),
        ("resnext101_64x4d", {"DEPTH": 101, "NUM_GROUPS": 64, "WIDTH_PER_GROUP": 4}),
    ],
)
def test_converted_names_and_shapes_match_the_backbone_of_the_printed_settings(name, settings, cfg):
    with torch.device("meta"):
        weights = torchvision.models.get_model(name).state_dict()
    converted, model = tool.convert(weights)
    assert model["RESNETS"] == {"STRIDE_IN_1X1": False, **settings}
    cfg.merge_from_other_cfg(type(cfg)({"MODEL": model}))
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res5"]
    with torch.device("meta"):
        expected = torch.nn.ModuleDict({"backbone": build_backbone(cfg)}).state_dict()
    shapes = [{key: value.shape for key, value in one.items()} for one in (converted, expected)]
    assert shapes[0] == shapes[1]


def test_the_file_that_torchvision_has_downloaded_is_found(resnet18, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    output = tmp_path / "backbone.pth"
    assert run("--model", "resnet18", "--output", output) == 1
    error = capsys.readouterr().err
    assert "no weights of resnet18" in error and "resnet18-f37072fd.pth" in error
    (tmp_path / "checkpoints").mkdir()
    torch.save(resnet18.state_dict(), tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert run("--model", "resnet18", "--output", output) == 0 and output.is_file()


def test_each_mistake_is_an_error_of_one_line_and_exit_code_1(resnet18, tmp_path, capsys):
    good, other, odd = tmp_path / "good.pth", tmp_path / "other.safetensors", tmp_path / "odd.pth"
    weights = resnet18.state_dict()
    torch.save(weights, good)
    save_file({"features.0.weight": torch.zeros(1)}, other)
    torch.save({k: v for k, v in weights.items() if not k.startswith("layer4.1")}, odd)
    output = tmp_path / "backbone.pth"
    changed = {
        "scalar": {"layer1.0.conv2.weight": torch.tensor(1.0)},
        "shape": {"conv1.weight": torch.zeros(64, 1, 7, 7)},
        "nan": {"conv1.weight": torch.full((64, 3, 7, 7), torch.nan)},
        "lacking": {"bn1.weight": None},
    }
    for name, change in changed.items():
        content = {k: v for k, v in {**weights, **change}.items() if v is not None}
        torch.save(content, tmp_path / f"{name}.pth")
    cases = [
        (
            ["--checkpoint", tmp_path / "scalar.pth"],
            output,
            "scalar.pth has a convolution layer1.0",
        ),
        (["--checkpoint", tmp_path / "shape.pth"], output, "has shape (64, 1, 7, 7), not (64, 3"),
        (["--checkpoint", tmp_path / "nan.pth"], output, "nan.pth: 1 of its", "not finite"),
        (["--checkpoint", tmp_path / "lacking.pth"], output, "lacking.pth", "weight is missing"),
        (["--checkpoint", other], output, "other.safetensors is not a ResNet", "features.0.weight"),
        (["--checkpoint", odd], output, "odd.pth is a ResNet with (2, 2, 2, 1) basic blocks"),
        (["--checkpoint", tmp_path / "absent.pth"], output, "There is no checkpoint", "absent"),
        (["--checkpoint", good], tmp_path / "x.bin", "x.bin; it must end in .safetensors"),
        (["--model", "resnt50"], output, "resnt50"),
    ]
    for source, path, *expected in cases:
        assert run(*source, "--output", path) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert [text for text in expected if text not in error] == []
        assert not path.exists()


def test_loading_a_torchvision_file_is_an_error_that_names_the_tool(resnet18, cfg, tmp_path):
    torch.save(resnet18.state_dict(), tmp_path / "resnet18.pth")
    model = torch.nn.ModuleDict({"backbone": build_backbone(cfg)})
    with pytest.raises(ValueError, match=r"resnet18\.pth does .*convert_torchvision_to_d2\.py"):
        Checkpointer(model).load(str(tmp_path / "resnet18.pth"))
