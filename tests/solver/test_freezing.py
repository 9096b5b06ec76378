"""Parameters and norms named by MODEL.FREEZE do not change in training."""

from __future__ import annotations

import pytest
import torch
from detectron2.engine import HookBase
from torch import nn

from mask_former.solver.freezing import freeze
from tests.helpers.tiny_trainer import TinyTrainer, train


def block():
    norms = nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3, affine=False)
    return nn.Sequential(nn.Conv2d(3, 3, 1, bias=False), *norms)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = block(), block()

    def forward(self, x):
        return self.head(self.body(x))


def step(net):
    net.train()
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    net(torch.randn(4, 3, 5, 5)).exp().sum().backward()
    optimizer.step()


def moved(net, patterns):
    """Freeze, take a step, and return the names of the changed entries of the state dict."""
    torch.manual_seed(0)
    freeze(net, patterns)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    step(net)
    return {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }


def test_without_patterns_everything_is_trained():
    net = Net()
    assert moved(net, []) == set(net.state_dict())


def test_a_frozen_module_keeps_its_weights_and_the_statistics_of_its_norms():
    changed = moved(Net(), ["body"])
    assert changed and not {name for name in changed if name.startswith("body")}


def test_a_norm_is_frozen_once_all_its_parameters_are():
    partly = moved(Net(), ["body.1.weight"])
    assert "body.1.running_mean" in partly and "body.1.weight" not in partly
    changed = moved(Net(), ["body.1.weight", "body.1.bias"])
    assert "body.0.weight" in changed and "body.3.running_mean" in changed
    assert not {name for name in changed if name.startswith("body.1")}


def test_evaluation_does_not_unfreeze_the_norms():
    net = Net()
    freeze(net, ["body"])
    net.eval()
    net.train()  # as detectron2's evaluation does
    before = net.body[1].running_mean.clone()
    step(net)
    assert torch.equal(net.body[1].running_mean, before) and net.head[1].training


def test_patterns_that_match_nothing_or_everything_are_errors():
    with pytest.raises(
        ValueError, match=r"MODEL.FREEZE: 'bodi' matches no parameter.*similar: body"
    ):
        freeze(Net(), ["bodi"])
    with pytest.raises(ValueError, match="leaves nothing to train"):
        freeze(Net(), ["*"])


def test_the_number_of_frozen_parameters_is_logged(caplog):
    with caplog.at_level("INFO"):
        freeze(Net(), ["body"])
    assert (
        "15 parameters in 3 tensors and the statistics of 2 norm layers are frozen" in caplog.text
    )


class Modes(HookBase):
    def __init__(self):
        self.seen = []

    def before_train(self):
        def record(module, args):
            self.seen.append(module.training)

        self.trainer.model.backbone.patch_embed.norm.register_forward_pre_hook(record)


def test_the_trainer_freezes_the_configured_parameters(config):
    cfg = config("MODEL.FREEZE", ["backbone", "*query_embed*"])
    before = TinyTrainer.build_model(cfg)
    modes = Modes()
    tiny_trainer = train(cfg, hook=modes)
    start = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    changed = {
        k for k, v in tiny_trainer.model.state_dict().items() if not torch.equal(v, start[k])
    }
    assert changed and not {k for k in changed if k.startswith("backbone") or "query_embed" in k}
    trained = [name for name, p in before.named_parameters() if p.requires_grad]
    assert len(tiny_trainer.optimizer.param_groups) == len(trained) < len(list(before.parameters()))
    assert modes.seen == [False] * 4
