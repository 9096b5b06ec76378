"""Hooks: the best model is kept, also across resumed runs, and predictions are drawn."""

from __future__ import annotations

import json
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.evaluation import DatasetEvaluator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mask_former.engine import trainer
from mask_former.engine.hooks import LRScheduler
from mask_former.modeling.heads.mask_former_head import MaskFormerHead
from tests.helpers.tiny_model import DATASET, NAMES
from tests.helpers.tiny_trainer import Kill, TinyTrainer, make_example, train


class GivenScores(DatasetEvaluator):
    """An evaluator that returns the next of the given scores."""

    def __init__(self, scores):
        self.scores = scores

    def reset(self):
        pass

    def process(self, inputs, outputs):
        pass

    def evaluate(self):
        return OrderedDict(sem_seg={"mIoU": self.scores.pop(0), "fwIoU": 1.0})


@pytest.fixture
def scored(config, monkeypatch):
    """A function that returns a config with one evaluation per iteration, scored ``scores``."""

    def scored(scores, *opts, metric="sem_seg/mIoU"):
        given = GivenScores(list(scores))
        monkeypatch.setattr(trainer, "build_evaluator", lambda *_: given)
        keys = ["DATASETS.TEST", "('one',)", "TEST.EVAL_PERIOD", 1, "SOLVER.CHECKPOINT_PERIOD", 1]
        return config(*keys, "TEST.BEST_METRIC", metric, *opts)

    return scored


def test_a_head_receives_the_progress_of_training(config, monkeypatch):
    received = []
    monkeypatch.setattr(
        MaskFormerHead,
        "set_progress",
        lambda _, *progress: received.append(progress),
        raising=False,
    )
    train(config("SOLVER.MAX_ITER", 3))
    assert received == [(0, 3), (1, 3), (2, 3), (3, 3)], "(steps done, all steps)"


def best_of(tmp_path):
    content = torch.load(tmp_path / "output" / "model_best.pth", weights_only=True)
    return content["iteration"], content["best"]["value"], content["model"]


def test_the_model_with_the_highest_score_is_kept(scored, tmp_path):
    train(scored([1.0, 3.0, float("nan"), 2.0]))
    iteration, value, weights = best_of(tmp_path)
    assert (iteration, value) == (1, 3.0)
    then = torch.load(tmp_path / "output" / "model_0000001.pth", weights_only=True)["model"]
    assert all(torch.equal(weights[name], then[name]) for name in then)
    assert (tmp_path / "output" / "last_checkpoint").read_text() == "model_final.pth"


def test_a_nonfinite_score_is_never_the_best(scored, tmp_path):
    train(scored([float("nan"), 0.5, float("inf"), 0.4]))
    assert best_of(tmp_path)[:2] == (1, 0.5)


def test_without_a_finite_score_there_is_no_best_model(scored, tmp_path):
    train(scored([float("nan")], "SOLVER.MAX_ITER", 1))
    assert not (tmp_path / "output" / "model_best.pth").exists()


def test_the_best_model_may_be_the_last_and_resuming_starts_from_the_last(scored, tmp_path):
    train(scored([1.0, 2.0, 3.0, 4.0]))
    assert best_of(tmp_path)[1] == 4.0
    tiny_trainer = TinyTrainer(scored([]))
    tiny_trainer.resume_or_load(True)
    assert tiny_trainer.start_iter == 4


def test_a_resumed_run_keeps_a_better_earlier_model(scored, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(scored([1.0, 5.0]), hook=Kill(at=2))
    train(scored([2.0, 3.0]), resume=True)
    assert best_of(tmp_path)[:2] == (1, 5.0)
    train(scored([6.0, 4.0], "SOLVER.MAX_ITER", 6), resume=True)
    assert best_of(tmp_path)[:2] == (4, 6.0)


def test_a_new_run_ignores_the_best_model_of_another(scored, tmp_path):
    train(scored([5.0], "SOLVER.MAX_ITER", 1))
    train(scored([1.0], "SOLVER.MAX_ITER", 1))
    assert best_of(tmp_path)[1] == 1.0


def test_the_lowest_loss_is_the_best(scored, monkeypatch, tmp_path):
    losses = [3.0, 1.0, 2.0, 4.0]
    monkeypatch.setattr(trainer, "validation_losses", lambda *_: {"val_loss_x": losses.pop(0)})
    monkeypatch.setattr(TinyTrainer, "build_validation_loader", lambda *_: [])
    train(scored([0.0] * 4, "TEST.VAL_LOSS", True, metric="val_loss_x"))
    assert best_of(tmp_path)[:2] == (1, 1.0)


def test_the_error_for_a_missing_metric_lists_the_available_ones(scored, tmp_path):
    with pytest.raises(KeyError, match=r"'sem_seg/miou'.*sem_seg/fwIoU, sem_seg/mIoU") as caught:
        train(scored([1.0], metric="sem_seg/miou"))
    assert "lr" not in str(caught.value) and "total_loss" not in str(caught.value)
    assert not (tmp_path / "output" / "model_best.pth").exists()


@pytest.mark.parametrize("opts", [("TEST.EVAL_PERIOD", 0), ("DATASETS.TEST", "()")])
def test_best_metric_without_evaluations_is_refused_before_training(scored, opts):
    with pytest.raises(ValueError, match=r"TEST.BEST_METRIC is 'sem_seg/mIoU'.*set both"):
        TinyTrainer(scored([], *opts))


# Drawings


@pytest.mark.parametrize("kind", ["SEMANTIC", "PANOPTIC", "INSTANCE"])
@pytest.mark.parametrize("image_format", ["RGB", "BGR"])
def test_predictions_are_drawn_for_tensorboard(config, monkeypatch, tmp_path, kind, image_format):
    batches = [[make_example(seed)] for seed in range(5)]
    monkeypatch.setattr(TinyTrainer, "build_test_loader", lambda *_: batches)
    monkeypatch.setattr(trainer, "build_evaluator", lambda *_: GivenScores([0.0]))
    on = {f"MODEL.MASK_FORMER.TEST.{one}_ON": one == kind for one in ("SEMANTIC", "PANOPTIC")}
    on["MODEL.MASK_FORMER.TEST.INSTANCE_ON"] = kind == "INSTANCE"
    keys = ["VIS_PERIOD", 2, "DATASETS.TEST", f"('{DATASET}',)", "INPUT.FORMAT", image_format]
    tiny_trainer = train(config(*keys, *[word for pair in on.items() for word in pair]))
    assert tiny_trainer.model.training
    events = EventAccumulator(str(tmp_path / "output"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"predictions/{number}" for number in range(3)]
    for number in range(3):
        assert [event.step for event in events.Images(f"predictions/{number}")] == [1, 3]


def test_a_drawing_shows_the_image_in_true_colours_with_its_prediction(config):
    from mask_former.data.datasets.classes import Classes
    from mask_former.engine.hooks import _draw

    scores = torch.full((4, 64, 64), -3.0)  # logits, as per-pixel models return them
    scores[2, :, 32:], scores[1, :, :32] = -1.0, -1.0
    colors = [(0, 0, 0), (200, 0, 0), (0, 0, 200), (0, 0, 0)]
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    image[0] = 100  # blue in BGR
    drawing = _draw(
        lambda batch: [{"sem_seg": scores}],
        {"image": image},
        "BGR",
        Classes(NAMES, colors, [False] * 4),
    )
    assert drawing.shape == (3, 64, 64) and drawing.dtype == np.uint8
    assert drawing[:, 5, 5].tolist() == [100, 0, 50]
    assert drawing[:, 5, 60].tolist() == [0, 0, 150]


def test_by_default_nothing_is_drawn_averaged_or_kept_as_the_best(config, tmp_path):
    tiny_trainer = train(config("SOLVER.MAX_ITER", 1, "DATASETS.TEST", "()"))
    kinds = {type(hook).__name__ for hook in tiny_trainer._hooks}
    assert not kinds & {"DrawPredictions", "AverageWeights", "BestCheckpointer"}
    assert json.loads((tmp_path / "output" / "metrics.json").read_text())["iteration"] == 0


def test_the_logged_rate_is_that_of_the_new_layers_of_a_vit():
    parameters = [{"params": [torch.zeros(1)], "lr": lr} for lr in (0.1, 0.1, 0.3)]
    parameters[0]["is_vit"] = parameters[1]["is_vit"] = True
    optimizer = torch.optim.SGD(parameters)
    hook = LRScheduler(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer))
    hook.before_train()
    assert hook._best_param_group_id == 2
    for group in optimizer.param_groups:
        group.pop("is_vit", None)
    hook.before_train()
    assert hook._best_param_group_id == 0  # the most common rate, as in detectron2
