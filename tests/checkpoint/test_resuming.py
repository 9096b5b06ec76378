"""A checkpoint that does not continue the training at hand is refused, and changes nothing."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.checkpoint.resuming import (
    check_average,
    check_form,
    check_optimizer,
    check_progress,
    check_scaler,
)


def trained(kind="AdamW", **options):
    """A small model, its names, and an optimizer after one step."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    groups = [{"params": [parameter]} for parameter in model.parameters()]
    optimizer = getattr(torch.optim, kind)(groups, 0.1, **options)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return model, optimizer, {p: name for name, p in model.named_parameters()}


def checked(state, kind="AdamW", **options):
    _, optimizer, names = trained(kind, **options)
    check_optimizer(optimizer, names, state)


def change(state, index, key, value):
    state["state"][index][key] = value


# The optimizer


@pytest.mark.parametrize(
    "kind, options",
    [("AdamW", {"fused": True}), ("AdamW", {}), ("SGD", {"momentum": 0.9}), ("SGD", {})],
)
def test_a_state_of_the_same_optimizer_is_accepted(kind, options):
    _, optimizer, _ = trained(kind, **options)
    checked(optimizer.state_dict(), kind, **options)
    checked({**optimizer.state_dict(), "state": {}}, kind, **options)  # before the first step


def test_a_state_of_torch_without_fused_kernels_is_accepted():
    _, plain, _ = trained()
    state = plain.state_dict()
    change(state, 0, "step", 1)  # a number in old versions
    for group in state["param_groups"]:
        group.pop("decoupled_weight_decay", None)  # which old versions lack
    checked(state, fused=True)


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("exp_avg", torch.zeros(1), r"exp_avg of 0\.weight has shape \(1,\), expected .*\(3, 4\)"),
        ("exp_avg_sq", torch.zeros(3, 5), r"exp_avg_sq of 0\.weight has shape \(3, 5\)"),
        ("exp_avg", torch.zeros(1).expand(3, 4), r"exp_avg of 0\.weight has strides \(0, 0\)"),
        ("exp_avg", torch.zeros(4, 3).T, r"exp_avg of 0\.weight has strides"),
        ("exp_avg", torch.zeros(3, 4).to_sparse(), r"exp_avg of 0\.weight has the type"),
        ("exp_avg", torch.zeros(3, 4, dtype=torch.complex64), r"exp_avg of 0\.weight has the type"),
        ("exp_avg", [0.0] * 12, r"exp_avg of 0\.weight has list"),
        ("step", torch.zeros(1000), r"step of 0\.weight has shape \(1000,\)"),
        ("step", torch.tensor(-1.0), r"step of 0\.weight is -1"),
        ("step", float("nan"), r"step of 0\.weight is nan"),
        ("momentum_buffer", torch.zeros(3, 4), r"state of 0\.weight is not that of SOLVER"),
    ],
)
def test_a_state_with_a_tensor_of_another_form_is_refused(key, value, message):
    _, optimizer, _ = trained()
    state = optimizer.state_dict()
    change(state, 0, key, value)
    with pytest.raises(ValueError, match=message):
        checked(state, fused=True)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"lr": "fast"}, "lr is str"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"betas": (0.9,)}, "betas is tuple"),
        ({"amsgrad": True}, "another one than SOLVER.OPTIMIZER: amsgrad is different"),
        ({"params": [1]}, "its optimizer has other parameters: 4, that of this config 4"),
    ],
)
def test_settings_of_another_form_are_refused(settings, message):
    _, optimizer, _ = trained()
    state = optimizer.state_dict()
    state["param_groups"][0].update(settings)
    with pytest.raises(ValueError, match=message):
        checked(state)


def test_a_state_of_another_optimizer_or_other_parameters_is_refused():
    _, sgd, _ = trained("SGD", momentum=0.9)
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER: betas is missing"):
        checked(sgd.state_dict())
    _, adam, _ = trained()
    with pytest.raises(ValueError, match=r"SOLVER\.OPTIMIZER: momentum is missing"):
        checked(adam.state_dict(), "SGD", momentum=0.9)
    state = adam.state_dict()
    del state["param_groups"][-1]
    with pytest.raises(
        ValueError, match="its optimizer has other parameters: 3, that of this config 4"
    ):
        checked(state)


# The other states


def test_an_average_of_another_model_or_without_numbers_is_refused():
    expected = {"n_averaged": torch.tensor(3), "module.a": torch.ones(2)}
    check_average(dict(expected), expected)
    for change, message in (
        ({"module.a": torch.ones(3)}, r"of another model: module\.a"),
        ({"module.b": torch.ones(3)}, r"of another model: module\.b"),
        ({"module.a": torch.tensor([1.0, float("nan")])}, r"module\.a is not finite"),
        ({"module.a": "text"}, "does not hold a state dict"),
    ):
        with pytest.raises(ValueError, match=message):
            check_average({**expected, **change}, expected)


def test_a_scaler_has_its_numbers_above_0_or_none_at_all():
    state = torch.amp.GradScaler("cpu").state_dict()
    for good in (state, {}, {**state, "_growth_tracker": 0}):
        check_scaler(good)
    for key, value in (("scale", 0.0), ("scale", "x"), ("growth_interval", -1), ("scale", None)):
        with pytest.raises(ValueError, match=f"gradient scaler.*{key} is"):
            check_scaler({**state, key: value})
    del state["scale"]
    with pytest.raises(KeyError):
        check_scaler(state)


@pytest.mark.parametrize("iteration", [10**12, 4, -1, True, 1.0, "3", None])
def test_an_iteration_outside_of_the_training_is_refused(iteration):
    check_progress(3, 4)
    with pytest.raises(ValueError, match=re.escape(f"{iteration}, expected 0 … 3, ")):
        check_progress(iteration, 4)


@pytest.mark.parametrize(
    "found",
    [
        {"a": "1"},
        {"a": 1.5},
        {"a": True},
        {"b": [1.0]},
        {"b": [1.0, "x"]},
        {"b": [1, float("inf")]},
    ],
)
def test_data_of_another_form_is_refused(found):
    expected = {"a": 1, "b": [1.0, 2.0], "c": None}
    for good in (expected, {}, {"a": 7, "b": (3, 4.5), "c": "anything", "d": 1}):
        check_form(expected, good, "it")
    with pytest.raises(ValueError, match=r"^it, [ab] is"):
        check_form(expected, found, "it")


# The checkpointer


class Counter:
    """A state that may be another one."""

    def __init__(self, count):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def check_state(self, state):
        check_form({"count": 0}, state, "the counter")

    def load_state_dict(self, state):
        self.count = state["count"]


def small(rows, **more):
    model = nn.Linear(2, rows, bias=False)
    nn.init.constant_(model.weight, rows)
    return model


def resume(folder, model, count):
    Checkpointer(model, str(folder), counter=Counter(count)).resume_or_load("", resume=True)


@pytest.mark.parametrize(
    "saved, count, message",
    [
        (small(4), 3, r"weight has shape \(4, 2\), the model expects \(3, 2\)"),
        (nn.Sequential(small(3)), 3, r"1 weights are missing in the file, such as weight"),
        (nn.Linear(2, 3), 3, r"1 weights are not in the model, such as bias"),
        (small(3), "many", "the counter, count is str"),
    ],
)
def test_what_does_not_continue_the_training_is_refused_and_changes_nothing(
    tmp_path, saved, count, message
):
    Checkpointer(saved, str(tmp_path), counter=Counter(count)).save("a")
    model, counter = small(3), Counter(1)
    checkpointer = Checkpointer(model, str(tmp_path), counter=counter)
    with pytest.raises(ValueError, match=rf"a\.pth cannot be resumed: {message}.*MODEL\.WEIGHTS"):
        checkpointer.resume_or_load("", resume=True)
    assert counter.count == 1 and model.weight.eq(3).all()


def test_a_damaged_state_is_named(tmp_path):
    Checkpointer(small(3), str(tmp_path)).write("a", counter=[1])
    Checkpointer(small(3), str(tmp_path)).tag_last_checkpoint("a.pth")
    with pytest.raises(ValueError, match=r"a\.pth cannot be resumed: the counter is list"):
        resume(tmp_path, small(3), 1)


def test_weights_alone_may_be_of_another_model(tmp_path):
    Checkpointer(nn.Linear(2, 3), str(tmp_path), counter=Counter(1)).save("a")
    checkpointer = Checkpointer(small(3), counter=Counter(2))
    checkpointer.resume_or_load(str(tmp_path / "a.pth"), resume=True)  # it has no checkpoint yet
    assert checkpointer.checkpointables["counter"].count == 2
