"""Averaged weights are computed, evaluated, saved and resumed correctly."""

from __future__ import annotations

import json
from collections import OrderedDict

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.engine import evaluate, run, trainer
from mask_former.engine.ema import WeightAverage
from mask_former.utils.weight_files import averaged_weights, read_checkpoint
from tests.helpers.tiny_trainer import Kill, TinyTrainer, make_example, train

ON = ["MODEL.EMA.ENABLED", True, "MODEL.EMA.DECAY", 0.6]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.register_buffer("index", torch.arange(2**20, 2**20 + 5))

    def forward(self, x):
        return self.norm(self.conv(x))


def change(net):
    """Imitate a step: change the weights at random and the statistics with data."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    net.train()(torch.randn(3, 1, 4, 4))


@pytest.mark.parametrize("start", [0, 2])
def test_the_average_matches_a_plain_loop_and_integers_are_copied(start):
    torch.manual_seed(0)
    net = Net()
    average = WeightAverage(net, decay=0.9, start_iter=start)
    expected = {}
    for iteration in range(5):
        change(net)
        average.update(net, iteration)
        for name, value in net.state_dict().items():
            if iteration <= start or not value.is_floating_point():
                expected[name] = value.clone()
            else:
                expected[name] = 0.9 * expected[name] + 0.1 * value
    found = average.module.state_dict()
    assert found["norm.num_batches_tracked"] == 5 and torch.equal(found["index"], net.index)
    assert not torch.allclose(found["norm.running_mean"], net.norm.running_mean)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("decay", [-0.1, 1.0, 99.0])
def test_the_error_for_a_decay_out_of_range_names_the_key(decay):
    with pytest.raises(ValueError, match=r"MODEL.EMA.DECAY is .*\[0, 1\)"):
        WeightAverage(Net(), decay)


def test_the_average_is_independent_of_the_model_even_with_activation_checkpointing(config):
    model = TinyTrainer.build_model(config("MODEL.ACTIVATION_CHECKPOINTING", True))
    average = WeightAverage(model, 0.9)
    with torch.no_grad():
        before = average.module([make_example(0)])[0]["sem_seg"]
        for parameter in model.parameters():
            parameter.zero_()
        assert torch.equal(average.module([make_example(0)])[0]["sem_seg"], before)
    assert not average.module.training and model.training


class Total(DatasetEvaluator):
    """An evaluator whose result differs between models: the sum of squared scores."""

    def reset(self):
        self.total = 0.0

    def process(self, inputs, outputs):
        self.total += outputs[0]["sem_seg"].double().square().sum().item()

    def evaluate(self):
        return OrderedDict(sem_seg={"total": self.total})


@pytest.fixture
def folders(monkeypatch):
    """The output folders of the evaluators built so far."""
    built = []

    def build_evaluator(cfg, dataset_name, output_folder=None):
        built.append(output_folder)
        return Total()

    monkeypatch.setattr(trainer, "build_evaluator", build_evaluator)
    return built


def score(cfg, weights):
    model = TinyTrainer.build_model(cfg)
    Checkpointer(model, whole=True).load(str(weights))
    return TinyTrainer.test(cfg, model)["sem_seg"]["total"]


def test_averaged_weights_are_evaluated_like_the_trained_ones_and_saved(config, tmp_path, folders):
    cfg = config(*ON, "DATASETS.TEST", "('one',)", "TEST.EVAL_PERIOD", 2)
    train(cfg)
    output = tmp_path / "output"
    assert folders[:2] == [None, str(output / "inference_EMA")] and len(folders) == 4
    results = json.loads((output / "results.json").read_text())["one"]
    final = output / "model_final.pth"
    trained, averaged = score(cfg, final), score(cfg, f"{final}?ema=True")
    assert trained != averaged
    assert results["sem_seg"]["total"] == pytest.approx(trained, rel=1e-6)
    assert results["sem_seg_EMA"]["total"] == pytest.approx(averaged, rel=1e-6)
    lines = [json.loads(line) for line in (output / "metrics.json").open()]
    assert sum("sem_seg_EMA/total" in line for line in lines) == 2


def test_evaluate_measures_both_and_checks_for_the_average_first(config, tmp_path, monkeypatch):
    plain, output = config("SOLVER.MAX_ITER", 1), tmp_path / "output"
    train(plain)
    monkeypatch.setattr(trainer, "build_evaluator", lambda *_: Total())
    monkeypatch.setattr(run, "Trainer", TinyTrainer)
    monkeypatch.setitem(DatasetCatalog.data, "one", list)
    keys = [*ON, "DATASETS.TEST", "('one',)", "MODEL.WEIGHTS", output / "model_final.pth"]
    with pytest.raises(ValueError, match="holds no averaged weights"):
        evaluate(config(*keys))
    assert not (output / "results.json").exists()
    train(config(*ON))
    results = evaluate(config(*keys))
    of_file = score(config(*keys), output / "model_final.pth?ema=True")
    assert results["sem_seg_EMA"]["total"] == pytest.approx(of_file, rel=1e-6)
    assert results["sem_seg"]["total"] != pytest.approx(of_file, rel=1e-6)


def test_a_resumed_run_has_the_average_of_an_uninterrupted_one(config, tmp_path):
    uninterrupted = train(config(*ON, "OUTPUT_DIR", tmp_path / "uninterrupted"))
    with pytest.raises(KeyboardInterrupt):
        train(config(*ON), hook=Kill(at=3))
    resumed = train(config(*ON), resume=True)
    assert resumed.start_iter == 2 and resumed.average.n_averaged == 4
    trained = resumed.model.state_dict()
    for name, expected in uninterrupted.average.module.state_dict().items():
        assert torch.equal(resumed.average.module.state_dict()[name], expected), name
    query = "sem_seg_head.predictor.query_embed.weight"
    assert not torch.equal(resumed.average.module.state_dict()[query], trained[query])


def test_averaging_can_be_turned_on_when_resuming(config):
    train(config("SOLVER.MAX_ITER", 2))
    resumed = train(config(*ON), resume=True)
    assert resumed.start_iter == 2 and resumed.average.n_averaged == 2


def test_without_averaging_there_are_no_averaged_weights(config, tmp_path):
    tiny_trainer = train(config("SOLVER.MAX_ITER", 1))
    final = tmp_path / "output" / "model_final.pth"
    assert tiny_trainer.average is None
    with pytest.raises(ValueError, match=r"model_final.pth holds no averaged.*MODEL.EMA.ENABLED"):
        averaged_weights(read_checkpoint(final), final)
    with pytest.raises(ValueError, match="holds no averaged weights"):
        Checkpointer(tiny_trainer.model).load(f"{final}?ema=True")
