"""Learning rate and weight decay of every parameter, and clipping of the full gradient."""

from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn

from mask_former.config.loading import load_cfg
from mask_former.solver.optimizer import build_optimizer, parameter_groups
from tests.helpers.tiny_model import write_tiny_model


@pytest.fixture
def solver(cfg):
    """The config with a different value for each setting."""
    cfg.SOLVER.BASE_LR = 0.5
    cfg.SOLVER.BACKBONE_MULTIPLIER = 0.25
    cfg.SOLVER.WEIGHT_DECAY = 0.01
    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.02
    cfg.SOLVER.WEIGHT_DECAY_EMBED = 0.03
    return cfg


class Body(nn.Module):
    """A module with a parameter of every kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 1)
        self.batch_norm = nn.BatchNorm2d(2)
        self.sync_norm = nn.SyncBatchNorm(2)
        self.group_norm = nn.GroupNorm(1, 2)
        self.layer_norm = nn.LayerNorm(2)
        self.instance_norm = nn.InstanceNorm2d(2, affine=True)
        self.frozen_norm = FrozenBatchNorm2d(2)  # has no parameters at all
        self.query_embed = nn.Embedding(3, 2)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(4))
        self.absolute_pos_embed = nn.Parameter(torch.zeros(4))


DECAY = {
    "conv.weight": 0.01,
    "conv.bias": 0.01,
    "query_embed.weight": 0.03,
    "relative_position_bias_table": 0.0,
    "absolute_pos_embed": 0.0,
}
for norm in ("batch_norm", "sync_norm", "group_norm", "layer_norm", "instance_norm"):
    DECAY |= {f"{norm}.weight": 0.02, f"{norm}.bias": 0.02}


def settings_by_name(cfg, model):
    """Return {name: (learning rate, weight decay)}; each group must hold one parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in parameter_groups(cfg, model):
        (parameter,) = group["params"]
        assert names[id(parameter)] not in found
        found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def test_every_kind_of_parameter_has_its_decay_and_the_backbone_its_rate(solver):
    model = nn.ModuleDict({"backbone": Body(), "head": Body(), "backbone_like": Body()})
    expected = {}
    for part, lr in (("backbone", 0.5 * 0.25), ("head", 0.5), ("backbone_like", 0.5)):
        for name, decay in DECAY.items():
            expected[f"{part}.{name}"] = (lr, decay)
    assert settings_by_name(solver, model) == expected


def test_a_frozen_parameter_is_in_no_group(solver):
    model = Body()
    model.conv.weight.requires_grad_(False)
    model.layer_norm.requires_grad_(False)
    left_out = {"conv.weight", "layer_norm.weight", "layer_norm.bias"}
    assert settings_by_name(solver, model).keys() == DECAY.keys() - left_out


def test_a_shared_parameter_is_in_one_group(solver):
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert settings_by_name(solver, model).keys() == {"a.weight", "a.bias", "b.bias"}


def test_every_parameter_of_a_model_follows_the_rules(solver, tmp_path):
    model = build_model(load_cfg(str(write_tiny_model(tmp_path)[0])))
    found = settings_by_name(solver, model)
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, (lr, decay) in found.items():
        assert lr == (0.125 if name.startswith("backbone.") else 0.5), name
        if "norm" in name:
            assert decay == 0.02, name
        elif "query_embed" in name:
            assert decay == 0.03, name
        elif "relative_position_bias_table" in name:
            assert decay == 0.0, name
    assert {decay for _, decay in found.values()} == {0.0, 0.01, 0.02, 0.03}


def test_the_factors_of_all_matching_patterns_are_multiplied(solver):
    solver.SOLVER.LR_MULTIPLIERS = [["backbone", 2.0], ["*.conv.*", 3], ["head.query_embed", 0.5]]
    model = nn.ModuleDict({"backbone": Body(), "head": Body()})
    for name, (lr, decay) in settings_by_name(solver, model).items():
        expected = 0.5 * 0.25 * 2 if name.startswith("backbone") else 0.5
        expected *= 3 if ".conv." in name else 1
        expected *= 0.5 if name == "head.query_embed.weight" else 1
        assert lr == expected, name
        assert decay == DECAY[name.partition(".")[2]], name


@pytest.mark.parametrize(
    "entry",
    ["head", ["head"], ["head", "2"], ["head", 0], ["head", -1.0], [2.0, "head"], ["head", True]],
)
def test_the_error_for_an_invalid_entry_shows_it(solver, entry):
    solver.SOLVER.LR_MULTIPLIERS = [["head", 1.0], entry]
    with pytest.raises(ValueError, match=r"SOLVER.LR_MULTIPLIERS has the entry .*expected a"):
        parameter_groups(solver, nn.ModuleDict({"head": Body()}))


def test_a_pattern_that_matches_nothing_is_an_error(solver):
    solver.SOLVER.LR_MULTIPLIERS = [["haed", 2.0]]
    with pytest.raises(ValueError, match=r"SOLVER.LR_MULTIPLIERS: 'haed' .*similar: head"):
        parameter_groups(solver, nn.ModuleDict({"head": Body()}))


# Steps


def linear(gradient):
    """Return a model with 3 weights of 0 and the given gradient."""
    model = nn.Linear(2, 1)
    model.weight.grad = torch.tensor([gradient[:2]])
    model.bias.grad = torch.tensor(gradient[2:])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def moved(model):
    return [round(v, 6) for p in model.parameters() for v in p.flatten().tolist()]


@pytest.fixture
def sgd(cfg):
    """Plain gradient descent with learning rate 1: a step is minus the gradient."""
    cfg.SOLVER.OPTIMIZER, cfg.SOLVER.BASE_LR = "SGD", 1.0
    cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM = 0.0, 0.0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 1.0
    return cfg


@pytest.mark.parametrize(
    "gradient, step",
    [([2.0, 3.0, 6.0], [2 / 7, 3 / 7, 6 / 7]), ([0.2, 0.3, 0.6], [0.2, 0.3, 0.6])],
)
def test_a_step_clips_the_norm_of_the_full_gradient_only_if_it_is_too_large(sgd, gradient, step):
    model = linear(gradient)
    build_optimizer(sgd, model).step()
    assert moved(model) == pytest.approx([-value for value in step], abs=1e-5)


def test_adamw_clips_too(sgd):
    sgd.SOLVER.OPTIMIZER = "ADAMW"
    model = linear([2.0, 3.0, 6.0])
    optimizer = build_optimizer(sgd, model)
    optimizer.step()
    first = {p: optimizer.state[p]["exp_avg"].norm().item() for p in model.parameters()}
    assert math.hypot(*first.values()) == pytest.approx(0.1, rel=1e-4)  # (1 - β₁) × the norm, 1


@pytest.mark.parametrize(
    "kind, step",
    [("value", [1.0, 1.0, 1.0]), ("norm", [2 / math.sqrt(13), 3 / math.sqrt(13), 1.0])],
)
def test_other_clip_types_are_detectron2s_and_act_on_each_parameter(sgd, kind, step):
    sgd.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
    model = linear([2.0, 3.0, 6.0])
    build_optimizer(sgd, model).step()
    assert moved(model) == pytest.approx([-value for value in step], abs=1e-5)


@pytest.mark.parametrize("enabled, value", [(False, 1.0), (True, 0.0)])
def test_nothing_is_clipped_if_clipping_is_off(sgd, enabled, value):
    sgd.SOLVER.CLIP_GRADIENTS.ENABLED = enabled
    sgd.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = value
    model = linear([2.0, 3.0, 6.0])
    build_optimizer(sgd, model).step()
    assert moved(model) == [-2.0, -3.0, -6.0]


def test_sgd_has_the_configured_momentum(sgd):
    sgd.SOLVER.MOMENTUM = 0.5
    sgd.SOLVER.CLIP_GRADIENTS.ENABLED = False
    model = linear([1.0, 1.0, 1.0])
    optimizer = build_optimizer(sgd, model)
    optimizer.step()
    optimizer.step()
    assert moved(model) == [-2.5] * 3


@pytest.mark.parametrize("name", ["ADAMW", "SGD"])
def test_weight_decay_shrinks_a_parameter_without_a_gradient(sgd, name):
    sgd.SOLVER.OPTIMIZER, sgd.SOLVER.WEIGHT_DECAY = name, 0.1
    model = linear([0.0, 0.0, 0.0])
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    build_optimizer(sgd, model).step()
    assert moved(model) == [0.9] * 3


def test_an_unknown_optimizer_is_an_error_that_names_the_key_and_the_known_ones(cfg):
    cfg.SOLVER.OPTIMIZER = "LION"
    with pytest.raises(ValueError, match=r"SOLVER.OPTIMIZER is 'LION'.*'ADAMW' or 'SGD'"):
        build_optimizer(cfg, nn.Linear(1, 1))
