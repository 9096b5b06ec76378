"""The time of each part of a step is assigned to the right stage."""

import time

import pytest
import torch
from profiling import ModelSpec, Workload, build_models
from profiling.workload import force_confident, random_batch

from mask_former.config.loading import load_cfg
from tests.helpers.tiny_model import write_tiny_model

WORKLOAD = Workload(size=(32, 64), images=2, targets=3)
SLEEP = 0.3
FORWARD = ["input", "backbone", "pixel decoder", "predictor"]


class SlowBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(SLEEP)
        return gradient


@pytest.fixture
def benchmarked(tmp_path):
    def benchmarked(training, kind="ours", *opts, workload=WORKLOAD):
        cfg = load_cfg(str(write_tiny_model(tmp_path)[0]), list(opts))
        (one,) = build_models([ModelSpec("one", cfg, kind)], workload)
        one.prepare(training)
        return one

    return benchmarked


def run(part):
    start = time.perf_counter()
    stages = part()
    return stages, time.perf_counter() - start


def slow_after(owner, method, slow):
    original = getattr(owner, method)
    setattr(owner, method, lambda *args, **kwargs: slow(original(*args, **kwargs)))


def slow_backward(result):
    """Make the backward pass of a tensor, or of the first tensor of a dict, slow."""
    if isinstance(result, torch.Tensor):
        return SlowBackward.apply(result)
    name = next(iter(result))
    return {**result, name: SlowBackward.apply(result[name])}


def coverage(part):
    """Return the share of a run that the stages cover: the best of 5, as others may interrupt."""
    runs = [run(part) for _ in range(5)]
    return max(sum(stages.values()) / seconds for stages, seconds in runs)


@pytest.mark.parametrize("kind", ["ours", "textbook"])
def test_the_stages_of_inference(benchmarked, kind):
    one = benchmarked(False, kind)
    assert list(run(one.step)[0]) == [*FORWARD, "semantic"]
    assert 0.8 < coverage(one.step) <= 1


@pytest.mark.parametrize("kind", ["ours", "textbook"])
def test_the_stages_of_training(benchmarked, kind):
    one = benchmarked(True, kind)
    after = ["targets", "matching", "losses", "criterion backward", "backward", "optimizer"]
    assert list(run(one.step)[0]) == FORWARD + after
    assert 0.8 < coverage(one.step) <= 1


@pytest.mark.parametrize("part", ["backbone", "sem_seg_head.predictor.class_embed"])
def test_the_stage_backward_has_the_networks_backward_pass(benchmarked, part):
    one = benchmarked(True)
    run(one.step)
    slow_after(one.model.get_submodule(part), "forward", slow_backward)
    stages, _ = run(one.step)
    assert stages["backward"] > SLEEP > stages["criterion backward"]


def test_the_stage_criterion_backward_has_the_criterions_backward_pass(benchmarked):
    one = benchmarked(True)
    run(one.step)
    slow_after(one.model.criterion, "forward", slow_backward)
    stages, _ = run(one.step)
    assert stages["criterion backward"] > SLEEP > stages["backward"]


def test_a_step_trains_and_the_network_alone_does_not(benchmarked):
    one = benchmarked(True)
    weight = one.model.sem_seg_head.predictor.query_embed.weight
    before = weight.clone()
    assert list(one.network_alone()) == ["network"]
    assert weight.grad is None and torch.equal(weight, before)
    run(one.step)
    assert not torch.equal(weight, before)


def test_accumulation_runs_the_network_more_often(benchmarked):
    one = benchmarked(True, "ours", "SOLVER.ACCUMULATE_STEPS", "3")
    calls = []
    slow_after(one.model.backbone, "forward", lambda x: calls.append(1) or x)
    run(one.step)
    assert len(calls) == 3
    run(one.network_alone)
    assert len(calls) == 6


def test_the_network_computes_in_the_format_of_the_config(benchmarked):
    options = [
        "TEST.AMP.ENABLED",
        "True",
        "SOLVER.AMP.ENABLED",
        "True",
        "SOLVER.AMP.DTYPE",
        "float16",
    ]
    for training, expected in ((False, torch.bfloat16), (True, torch.float16)):
        one = benchmarked(training, "ours", *options)
        assert one.amp_dtype is expected and one.scaler.is_enabled() is training
        found = []
        slow_after(
            one.model, "network", lambda x, found=found: found.append(x["pred_masks"].dtype) or x
        )
        run(one.step)
        run(one.network_alone)
        assert found == [expected] * 2


@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_head_is_one_stage(benchmarked, monkeypatch, training):
    compile = torch.nn.Module.compile

    def compile_without_a_compiler(module, **options):
        compile(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_a_compiler)
    one = benchmarked(training, "ours", "MODEL.COMPILE", "True")
    stages, _ = run(one.step)
    after = ["targets", "matching", "losses", "criterion backward", "backward", "optimizer"]
    assert list(stages) == ["input", "backbone", "head", *(after if training else ["semantic"])]
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_force_confident_makes_that_many_queries_confident_of_a_class():
    logits = 20 * torch.randn(2, 5, 4)
    force_confident(logits, 2)
    probability = logits.softmax(-1)
    assert probability.argmax(-1).tolist() == [[0, 1, 3, 3, 3]] * 2
    assert probability.amax(-1).min() > 0.99


def test_targets_cover_an_image_once():
    for example in random_batch(WORKLOAD, 7):
        masks = example["instances"].gt_masks
        assert masks.shape == (3, 32, 64) and masks.dtype == torch.bool
        assert (masks.sum(0) == 1).all()
