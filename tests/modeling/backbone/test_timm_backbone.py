"""timm models as backbones: maps named by stride, frozen layers, errors that name the fix."""

import copy
import sys

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone

from mask_former.modeling.activation_checkpointing import checkpoint_activations
from mask_former.modeling.backbone import timm_depthwise
from mask_former.modeling.backbone.timm_backbone import TimmBackbone
from mask_former.ops.depthwise_conv import depthwise_conv2d

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
DEPTHWISE = "tf_mobilenetv3_small_minimal_100"
"""A small model with depthwise convolutions."""


def parameters_up_to(backbone, feature, side=64):
    """Return the names of the parameters that the map's backward pass reaches."""
    backbone.zero_grad()
    maps = backbone(torch.randn(2, 3, side, side))
    maps[feature].square().sum().backward()
    return {name for name, value in backbone.named_parameters() if value.grad is not None}


def frozen_parameters(backbone):
    return {name for name, value in backbone.named_parameters() if not value.requires_grad}


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("tf_efficientnet_lite0", 64),
        ("resnet18", 64),
        ("convnext_atto", 64),
        ("mobilenetv3_small_050", 64),
        ("pvt_v2_b0", 64),
        ("swin_s3_tiny_224", 224),  # channels last, and only one input size
    ],
)
def test_maps_are_named_by_their_strides_and_equal_timms(name, side):
    torch.manual_seed(0)
    backbone = TimmBackbone(name).eval()
    images = torch.randn(1, 3, side, side if side == 224 else side + 32)
    with torch.no_grad():
        maps = backbone(images)
        reference = backbone.body(images.contiguous(memory_format=torch.channels_last))[-4:]
    assert list(maps) == list(STRIDES)
    for (feature, found), expected in zip(maps.items(), reference, strict=True):
        shape = backbone.output_shape()[feature]
        height, width = (size // STRIDES[feature] for size in images.shape[-2:])
        assert shape.stride == STRIDES[feature]
        assert tuple(found.shape) == (1, shape.channels, height, width)
        if expected.shape != found.shape:
            expected = expected.movedim(-1, 1)
        assert torch.equal(found, expected)


@pytest.mark.parametrize("features", [["res5"], ["res4", "res2"], ["res1", "res3"]])
def test_out_features_selects_the_maps_and_the_size_divisor(features):
    strides = {"res1": 2, **STRIDES}
    backbone = TimmBackbone("test_resnet", out_features=features).eval()
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert list(maps) == list(backbone.output_shape()) == features
    assert [64 // one.shape[-1] for one in maps.values()] == [strides[name] for name in features]
    assert backbone.size_divisibility == max(strides[name] for name in features)


# timm cuts the first with hooks and flattens the others; the last has no running statistics.
@pytest.mark.parametrize("freeze_at", [2, 3, 5])
@pytest.mark.parametrize("name", [DEPTHWISE, "test_resnet", "test_convnext"])
def test_freeze_at_freezes_exactly_the_parameters_up_to_that_map(name, freeze_at):
    whole = TimmBackbone(name).train()
    up_to_the_map = parameters_up_to(whole, f"res{freeze_at}")
    everything = parameters_up_to(whole, "res5")
    backbone = TimmBackbone(name, freeze_at=freeze_at).train()
    assert frozen_parameters(backbone) == up_to_the_map
    if freeze_at < 5:
        assert parameters_up_to(backbone, "res5") == everything - up_to_the_map != set()


def test_freezing_a_wrapped_model_includes_its_position_embedding():
    whole = TimmBackbone("test_vit", out_features=["res4"])
    backbone = TimmBackbone("test_vit", out_features=["res4"], freeze_at=4)
    up_to_the_map = parameters_up_to(whole, "res4", side=160)
    assert "body.model.pos_embed" in up_to_the_map
    assert frozen_parameters(backbone) == up_to_the_map


def norm_statistics(backbone):
    return {
        name: value.clone() for name, value in backbone.named_buffers() if "running_mean" in name
    }


def test_only_norms_that_are_not_frozen_update_their_statistics_in_training():
    backbone = TimmBackbone("test_resnet", freeze_at=3)
    for _ in range(2):  # a round trip, as evaluation during training does
        backbone.eval()
        assert not any(module.training for module in backbone.modules())
        backbone.train()
    before = norm_statistics(backbone)
    backbone(torch.randn(2, 3, 64, 64))
    after = norm_statistics(backbone)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layer3" in name or "layer4" in name}


def test_nothing_is_frozen_by_default():
    backbone = TimmBackbone("test_resnet").train()
    assert all(value.requires_grad for value in backbone.parameters())
    assert all(module.training for module in backbone.modules())


def test_drop_path_rate_is_passed_to_timm():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 64, 64)
    backbone = TimmBackbone("test_convnext", drop_path_rate=0.9).train()
    assert not torch.equal(backbone(images)["res5"], backbone(images)["res5"])


def test_the_error_for_an_unknown_model_suggests_similar_names():
    with pytest.raises(
        ValueError, match=r"MODEL\.TIMM\.NAME is 'resnt18', which is not one.*'resnet18'"
    ):
        TimmBackbone("resnt18")
    with pytest.raises(ValueError, match=r"MODEL\.TIMM\.NAME is '', which is not one.*list_models"):
        TimmBackbone("")


@pytest.mark.parametrize(
    ("name", "existing"),
    [
        ("test_vit", r"are \['res4'\] \(strides \[16, 16, 16\]\)"),
        ("levit_128", r"are \['res4', 'res5', 'res6'\]"),
    ],
)
def test_the_error_for_missing_maps_lists_those_the_model_has(name, existing):
    with pytest.raises(ValueError, match=existing) as error:
        TimmBackbone(name)
    assert "MODEL.TIMM.OUT_FEATURES has ['res2', 'res3'" in str(error.value)


def test_a_map_whose_stride_is_not_a_power_of_two_gets_no_name():
    with torch.device("meta"), pytest.raises(ValueError, match=r"are \[\] \(strides \[14,"):
        TimmBackbone("vit_small_patch14_dinov2")


@pytest.mark.parametrize(
    ("name", "freeze_at", "message"),
    [
        ("convnext_atto", 1, r"FREEZE_AT is 1, but there is no res1.*\['res2', 'res3'"),
        ("test_resnet", 6, "FREEZE_AT is 6, but there is no res6"),
        ("hrnet_w18_small", 2, r"no layer 'stage1', the source of res2.*0 to freeze nothing"),
    ],
)
def test_freezing_up_to_a_missing_map_is_an_error(name, freeze_at, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name, freeze_at=freeze_at)


def test_a_model_that_timm_cannot_cut_is_an_error_that_names_it(monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("features_only not implemented")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(ValueError, match="feature maps from 'resnet18': features_only not"):
        TimmBackbone("resnet18")


def test_without_timm_the_error_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="pip install timm"):
        TimmBackbone("resnet18")


def test_the_config_builds_a_timm_backbone(cfg):
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = "test_resnet"
    cfg.MODEL.TIMM.OUT_FEATURES = ["res4", "res5"]
    cfg.MODEL.TIMM.FREEZE_AT = 2
    backbone = build_backbone(cfg, ShapeSpec(channels=4))
    assert isinstance(backbone, TimmBackbone)
    maps = backbone(torch.randn(2, 4, 64, 64))
    assert list(maps) == ["res4", "res5"]
    assert {name.split(".")[1] for name in frozen_parameters(backbone)} == {
        "conv1",
        "bn1",
        "layer1",
    }


def step(backbone, image, dtype=None):
    """Run one step, in mixed precision if ``dtype`` is given; return maps and gradients by name."""
    backbone.zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        maps = backbone(image)
    sum(one.float().square().mean() for one in maps.values()).backward()
    return maps, {name: p.grad.clone() for name, p in backbone.named_parameters()}


def depthwise_weights(backbone):
    return {
        f"{name}.weight"
        for name, module in backbone.named_modules()
        if isinstance(module, torch.nn.Conv2d) and module.groups > 1
    }


def depthwise_conv2d_of_copies(x, weight, bias, *window):
    """Convolve in bfloat16 with torch, but take the gradients from a convolution of fp32 copies."""
    out = F.conv2d(x, weight, bias, *window, groups=x.shape[1])
    copies = [None if t is None else t.float() for t in (x, weight, bias)]
    with torch.autocast("cpu", enabled=False):
        precise = F.conv2d(*copies, *window, groups=x.shape[1])
    return out.detach() + (precise - precise.detach()).to(out.dtype)


def test_depthwise_gradients_in_mixed_precision_equal_those_of_fp32_copies(monkeypatch):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 65, 96)
    backbone = TimmBackbone("tf_efficientnet_lite0").train()
    twin = copy.deepcopy(backbone)
    maps, found = step(backbone, image, torch.bfloat16)
    monkeypatch.setattr(timm_depthwise, "depthwise_conv2d", depthwise_conv2d_of_copies)
    expected_maps, expected = step(twin, image, torch.bfloat16)
    assert all(torch.equal(maps[name], expected_maps[name]) for name in maps)
    for name, grad in found.items():
        assert torch.equal(grad, expected[name]), name


def test_depthwise_gradients_in_mixed_precision_equal_torchs_up_to_rounding(monkeypatch):
    torch.manual_seed(0)
    image = torch.randn(2, 3, 65, 96)
    backbone = TimmBackbone("tf_efficientnet_lite0").train()
    calls = []
    monkeypatch.setattr(
        timm_depthwise, "depthwise_conv2d", lambda *a: calls.append(a) or depthwise_conv2d(*a)
    )
    maps, found = step(backbone, image, torch.bfloat16)
    assert len(calls) == len(depthwise_weights(backbone)) == 16
    plain = TimmBackbone("tf_efficientnet_lite0", reference_ops=True).train()
    plain.load_state_dict(backbone.state_dict())
    expected_maps, expected = step(plain, image, torch.bfloat16)
    assert all(torch.equal(maps[name], expected_maps[name]) for name in maps)
    # Measured on all gradients together, because a norm layer cancels the gradients of some
    # parameters except for rounding errors, which differ between kernels. bfloat16 rounds by up to
    # 2^-9 of a value; two roundings in each of about 50 layers add up to sqrt(100) * 2^-9 = 0.02.
    errors = [(grad - expected[name]).norm() for name, grad in found.items()]
    sizes = [grad.norm() for grad in expected.values()]
    assert torch.stack(errors).norm() / torch.stack(sizes).norm() < 0.1


def test_in_fp32_or_without_gradients_torchs_depthwise_convolution_runs(monkeypatch):
    def forbidden(*args):
        raise AssertionError

    monkeypatch.setattr(timm_depthwise, "depthwise_conv2d", forbidden)
    image = torch.randn(1, 3, 64, 64)
    backbone = TimmBackbone(DEPTHWISE).train()
    step(backbone, image)  # in fp32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        backbone(image)  # without gradients


def test_a_copy_of_the_backbone_uses_its_own_weights():
    image = torch.randn(1, 3, 64, 64)
    backbone = TimmBackbone(DEPTHWISE).eval()
    twin = copy.deepcopy(backbone)
    for parameter in twin.parameters():
        parameter.data.zero_()
    assert not torch.equal(twin(image)["res5"], backbone(image)["res5"])


def test_depthwise_gradients_survive_activation_checkpointing():
    torch.manual_seed(0)
    image = torch.randn(2, 3, 64, 64)
    backbone = TimmBackbone(DEPTHWISE).train()
    _, expected = step(backbone, image, torch.bfloat16)
    checkpoint_activations(backbone)
    _, found = step(backbone, image, torch.bfloat16)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=0.05, atol=1e-4)
