"""tools/train_net.py trains, resumes after a kill, and evaluates, in one or two processes."""

from __future__ import annotations

import json
import math
import signal
import time

import pytest
import torch
import yaml

from mask_former.data.shapes.writer import Settings, generate
from tests.helpers import train_net_runs, warm_processes
from tests.helpers.train_net_runs import TIMEOUT, TINY_SWIN, arguments, results_of
from tests.helpers.warm_processes import script

pytestmark = pytest.mark.subprocess

CONFIG = "shapes/maskformer_panoptic_tiny.yaml"
DATASET = "shapes_panoptic_val"
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")

ITERATIONS, CHECKPOINT_PERIOD = 60, 4
TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    **TINY_SWIN,
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.SEM_SEG_HEAD.MASK_DIM": 32,
    "MODEL.MASK_FORMER.HIDDEN_DIM": 16,
    "MODEL.MASK_FORMER.NHEADS": 2,
    "MODEL.MASK_FORMER.DIM_FEEDFORWARD": 16,
    "MODEL.MASK_FORMER.DEC_LAYERS": 1,
    "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": 8,
    # The model is hardly trained, so its confidence is low; its results must not be empty.
    "MODEL.MASK_FORMER.NO_OBJECT_WEIGHT": 0.01,
    "MODEL.MASK_FORMER.MASK_WEIGHT": 1.0,
    "MODEL.MASK_FORMER.DICE_WEIGHT": 5.0,
    "SOLVER.BASE_LR": 0.003,
    "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD": 0.0,
    "MODEL.MASK_FORMER.TEST.OVERLAP_THRESHOLD": 0.0,
    "INPUT.MIN_SIZE_TRAIN": [64],
    "INPUT.MIN_SIZE_TEST": 64,
    "SOLVER.IMS_PER_BATCH": 2,
    "SOLVER.CHECKPOINT_PERIOD": CHECKPOINT_PERIOD,
    "DATALOADER.NUM_WORKERS": 0,
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Write a small shapes dataset; return the variables of a process that finds it."""
    root = tmp_path_factory.mktemp("datasets")
    generate(root / "shapes_panoptic", Settings(num_train=8, num_val=4))
    return train_net_runs.environment(root)


def command(output, *options, launcher=(), **settings):
    """List the words of a tools/train_net.py command; ``A__B=1`` sets the key ``A.B``."""
    keys = {name.replace("__", "."): value for name, value in settings.items()}
    return [*launcher, *arguments(CONFIG, output, *options, settings={**TINY, **keys})]


def run(*arguments, launcher=(), **keywords):
    """Run a command to its end, and return its output."""
    if launcher:
        where = {name: keywords.pop(name) for name in ("cwd", "environment")}
        return train_net_runs.run(command(*arguments, launcher=launcher, **keywords), **where)
    code, log = run_warm(*arguments, **keywords)
    assert code == 0, log
    return log


def run_warm(*arguments, cwd, environment, **keywords):
    """Run a command that starts with torch imported, and return its exit code and output."""
    words, log = command(*arguments, **keywords), cwd / "log"
    process = warm_processes.start(script, words, cwd=cwd, environment=environment, log=log)
    outcome = process.outcome(TIMEOUT)
    assert outcome.error is None, outcome
    return outcome.value, log.read_text()


def kill_in_the_middle(output, cwd, environment):
    """Start a training and kill it soon after its second checkpoint."""
    second = output / f"model_{2 * CHECKPOINT_PERIOD - 1:07d}.pth"
    words = command(output, SOLVER__MAX_ITER=ITERATIONS)
    process = warm_processes.start(script, words, cwd=cwd, environment=environment)
    deadline = time.monotonic() + TIMEOUT
    while not second.exists() and process.is_alive and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    assert process.outcome(TIMEOUT).signal == signal.SIGKILL
    assert second.exists(), "the training ended or timed out before its second checkpoint"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, environment):
    """Kill a run and resume it.

    Returns:
        Its output folder; before resuming, the names of its files and the last checkpoint; and
        the output of the resumed run.
    """
    folder = tmp_path_factory.mktemp("trained")
    output = folder / "output"
    kill_in_the_middle(output, folder, environment)
    before = {path.name for path in output.iterdir()}
    before_last = (output / "last_checkpoint").read_text()
    log = run(output, "--resume", cwd=folder, environment=environment, SOLVER__MAX_ITER=ITERATIONS)
    return output, before, before_last, log


def assert_plain_numbers(results):
    """Assert that results are ``{dataset: {task: {metric: number or null}}}``."""
    assert list(results) == [DATASET]
    assert list(results[DATASET]) == ["panoptic_seg"]
    metrics = results[DATASET]["panoptic_seg"]
    expected = {f"{name}{of}" for name in ("PQ", "SQ", "RQ") for of in ("", "_th", "_st")}
    assert expected <= set(metrics)
    for value in metrics.values():
        assert value is None or (type(value) in (int, float) and math.isfinite(value))


def metrics_of(output):
    """Return the lines of metrics.json that belong to training steps."""
    lines = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    return [line for line in lines if "total_loss" in line]


def test_a_killed_run_leaves_complete_checkpoints_and_no_final_one(trained):
    output, before, last, _ = trained
    assert "model_final.pth" not in before and "results.json" not in before
    assert last in before
    for name in before:
        if name.endswith(".pth"):
            assert "model" in torch.load(output / name, weights_only=True)


def test_resuming_continues_from_the_last_checkpoint_to_the_same_number_of_iterations(trained):
    output, _, last, log = trained
    start = int(last.removeprefix("model_").removesuffix(".pth")) + 1
    assert 0 < start < ITERATIONS and start % CHECKPOINT_PERIOD == 0
    assert f"Starting training from iteration {start}\n" in log
    final = torch.load(output / "model_final.pth", weights_only=True)
    assert final["iteration"] == ITERATIONS - 1
    assert metrics_of(output)[-1]["iteration"] == ITERATIONS - 1
    steps = {int(state["step"]) for state in optimizer_state(final).values()}
    assert steps == {ITERATIONS}  # the optimizer's state is restored from the checkpoint


def optimizer_state(checkpoint):
    return checkpoint["trainer"]["_trainer"]["optimizer"]["state"]


def test_a_run_leaves_metrics_checkpoints_its_config_and_its_results(trained):
    output, _, _, log = trained
    assert (output / "last_checkpoint").read_text() == "model_final.pth"
    settings = yaml.safe_load((output / "config.yaml").read_text())
    assert settings["SOLVER"]["MAX_ITER"] == ITERATIONS
    assert settings["MODEL"]["SWIN"]["EMBED_DIM"] == 8
    assert_plain_numbers(results_of(output))
    for line in metrics_of(output):
        assert {"loss_ce", "loss_mask", "loss_dice", "lr", "time", "data_time"} <= set(line)
    assert list(output.glob("events.out.tfevents.*"))  # TensorBoard's
    assert "max_mem: " in log and "eta: " in log
    assert not [path for path in output.iterdir() if path.name.endswith(".part")]


def test_training_lowers_the_loss(trained):
    losses = [line["total_loss"] for line in metrics_of(trained[0])]
    assert losses[-1] < losses[0]


def segments_of(output):
    """Return (image, class) of every predicted segment, in the order of images, and the scores."""
    content = json.loads((output / "inference" / "predictions.json").read_text())
    images = sorted(content["annotations"], key=lambda image: image["image_id"])
    segments = [(image["image_id"], s) for image in images for s in image["segments_info"]]
    where = [(image, segment["category_id"]) for image, segment in segments]
    return where, [segment["score"] for _, segment in segments]


def assert_same_results(one, two):
    """Compare metrics and segments, because all metrics of so weak a model may be 0."""
    assert results_of(one) == results_of(two)
    (where, scores), (expected_where, expected_scores) = segments_of(one), segments_of(two)
    assert len(where) > 4 and where == expected_where
    assert scores == pytest.approx(expected_scores, rel=1e-4)


def test_eval_only_gives_the_results_of_the_training(trained, environment, tmp_path):
    weights = trained[0] / "model_final.pth"
    output = tmp_path / "output"
    run(output, "--eval-only", cwd=tmp_path, environment=environment, MODEL__WEIGHTS=weights)
    assert_same_results(output, trained[0])
    assert not list(output.glob("*.pth"))


def test_eval_only_refuses_weights_that_would_leave_a_part_of_the_model_random(
    trained, environment, tmp_path
):
    content = torch.load(trained[0] / "model_final.pth", weights_only=True)
    content["model"].pop("sem_seg_head.predictor.query_embed.weight")
    torch.save(content, tmp_path / "x.pth")
    keys = {"MODEL__WEIGHTS": tmp_path / "x.pth"}
    where = {"cwd": tmp_path, "environment": environment}
    code, log = run_warm(tmp_path / "output", "--eval-only", **where, **keys)
    assert code == 2
    assert "x.pth does not fit the model: 1 of " in log
    assert "must be a checkpoint of the whole model" in log


def test_two_processes_of_torchrun_give_the_same_results(trained, environment, tmp_path):
    weights = trained[0] / "model_final.pth"
    output = tmp_path / "output"
    log = run(
        output,
        "--eval-only",
        cwd=tmp_path,
        environment=environment,
        launcher=TORCHRUN,
        MODEL__WEIGHTS=weights,
    )
    assert "World size: 2" in log
    assert_same_results(output, trained[0])


@pytest.mark.parametrize(
    "launcher, options",
    [((), ("--num-gpus", "2", "--dist-url", "auto")), (TORCHRUN, ())],
    ids=["num-gpus", "torchrun"],
)
def test_two_cpu_processes_train_together(environment, tmp_path, launcher, options):
    output = tmp_path / "output"
    log = run(
        output,
        *options,
        cwd=tmp_path,
        environment=environment,
        launcher=launcher,
        SOLVER__MAX_ITER=3,
        DATASETS__TEST="()",
    )
    assert "World size: 2" in log
    assert (output / "log.txt.rank1").is_file()
    assert [line["iteration"] for line in metrics_of(output)] == [2]
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 2
