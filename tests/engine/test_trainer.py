"""The trainer: full and mixed precision on a CPU, complete checkpoints, and results."""

from __future__ import annotations

import json
import math
import shutil
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from mask_former.engine import Trainer, trainer
from mask_former.engine.train_loop import TrainLoop
from mask_former.solver.optimizer import build_optimizer
from tests.helpers.tiny_model import NAMES
from tests.helpers.tiny_trainer import SIZE, Kill, TinyTrainer, tiny_configs, train

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory, one_thread):
    """Folder in which a training of two steps has left its files."""
    folder = tmp_path_factory.mktemp("two_steps")
    train(tiny_configs(folder)("SOLVER.MAX_ITER", 2))
    return folder / "output"


@pytest.fixture
def continued(config, tmp_path, two_steps):
    """The function ``config``, whose trainings find the files of a training of two steps."""
    shutil.copytree(two_steps, tmp_path / "output")
    return config


# Mixed precision


class DtypeRecorder(nn.Module):
    """Records the dtypes of a layer's outputs."""

    def __init__(self, layer):
        super().__init__()
        self.dtypes = []
        layer.register_forward_hook(lambda *call: self.dtypes.append(call[-1].dtype))


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float16"])
def test_a_cpu_trains_in_full_and_in_mixed_precision(config, dtype):
    opts = ["SOLVER.AMP.ENABLED", dtype is not None, "SOLVER.AMP.DTYPE", dtype or "bfloat16"]
    tiny_trainer = TinyTrainer(config("SOLVER.MAX_ITER", 2, *opts))
    before = [p.detach().clone() for p in tiny_trainer.model.parameters()]
    watch = DtypeRecorder(tiny_trainer.model.backbone.patch_embed.proj)
    tiny_trainer.train()
    assert watch.dtypes == [getattr(torch, dtype or "float32")] * 2
    assert math.isfinite(tiny_trainer.storage.history("total_loss").latest())
    for parameter in tiny_trainer.model.parameters():
        assert parameter.dtype == torch.float32 and parameter.isfinite().all()
    if dtype != "float16":  # its first steps only search for a loss scale
        pairs = zip(before, tiny_trainer.model.parameters(), strict=True)
        assert sum(not torch.equal(old, new) for old, new in pairs) > 50


def test_an_unknown_precision_is_an_error_that_names_the_key(config):
    with pytest.raises(ValueError, match=r"SOLVER.AMP.DTYPE is 'float8'.*bfloat16.*float16"):
        TinyTrainer(config("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "float8"))


@pytest.mark.parametrize("amp_dtype", [None, torch.bfloat16, torch.float16])
def test_gradients_are_unscaled_before_they_are_clipped(cfg, amp_dtype):
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = "full_model"
    cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = 100.0  # more than the norm of the gradient
    weight = nn.Parameter(torch.zeros(2))
    module = nn.Module()
    module.register_parameter("weight", weight)
    module.forward = lambda data: {"loss": (weight * torch.tensor([3.0, 4.0])).sum()}
    optimizer = build_optimizer(cfg, module)
    loop = TrainLoop(module, [None], optimizer, amp_dtype=amp_dtype, device=torch.device("cpu"))
    loop._write_metrics = lambda *metrics: None
    loop.run_step()
    # AdamW's first moment is (1 - β₁) × the gradient.
    assert optimizer.state[weight]["exp_avg"].tolist() == pytest.approx([0.3, 0.4])


# Checkpoints


class RateRecorder(HookBase):
    """Records the learning rate of each step, for a parameter outside the backbone."""

    def __init__(self):
        self.rates = []

    def before_step(self):
        self.rates.append(self.trainer._trainer.optimizer.param_groups[-1]["lr"])


def test_a_killed_and_resumed_run_ends_like_an_uninterrupted_one(config, tmp_path):
    uninterrupted = train(config("OUTPUT_DIR", tmp_path / "uninterrupted"))
    with pytest.raises(KeyboardInterrupt):
        train(config(), hook=Kill(at=3))
    resumed = train(config(), resume=True)
    assert resumed.start_iter == 2
    for name, expected in uninterrupted.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], expected), name
    rates = [[g["lr"] for g in t._trainer.optimizer.param_groups] for t in (uninterrupted, resumed)]
    assert rates[0] == rates[1]
    lines = [json.loads(line) for line in (tmp_path / "output/metrics.json").open()]
    assert lines[-1]["iteration"] == 3


def test_resuming_reproducibly_draws_other_images_than_the_start_of_the_run(config):
    train(config("SOLVER.MAX_ITER", 2))
    began = [loader.drawn for loader in TinyTrainer.loaders]
    resumed = []
    for _ in range(2):
        TinyTrainer.loaders.clear()
        tiny_trainer = TinyTrainer(config())
        tiny_trainer.resume_or_load(True)
        assert tiny_trainer._trainer.data_loader is TinyTrainer.loaders[-1]
        resumed.append(TinyTrainer.loaders[-1].drawn)
    assert len(began) == 1 and resumed[0] == resumed[1] != began[0]


def test_resuming_without_a_checkpoint_starts_from_the_weights_of_the_config(config, tmp_path):
    part = tmp_path / "output" / ".model_0000001.pth.17.part"
    cfg = config()
    part.write_text("left by a run that was killed while it wrote")
    tiny_trainer = TinyTrainer(cfg)
    tiny_trainer.resume_or_load(True)
    assert tiny_trainer.start_iter == 0 and not part.exists()
    expected = torch.load(cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    for name, value in tiny_trainer.model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_processes_that_would_continue_at_different_iterations_all_stop(config, monkeypatch):
    monkeypatch.setattr(trainer.comm, "all_gather", lambda start: [start, 7])
    with pytest.raises(ValueError, match=r"iterations \[0, 7\], by rank: .*the same OUTPUT_DIR"):
        TinyTrainer(config()).resume_or_load(True)


def test_without_resume_a_run_starts_from_iteration_0(continued):
    tiny_trainer = TinyTrainer(continued())
    tiny_trainer.resume_or_load(False)
    assert tiny_trainer.start_iter == 0


def test_a_checkpoint_holds_plain_data_and_all_training_state(config, tmp_path):
    train(config())
    path = tmp_path / "output" / "model_final.pth"
    content = torch.load(path, weights_only=True)
    assert content["iteration"] == 3
    assert content["trainer"]["iteration"] == 3
    loop = content["trainer"]["_trainer"]
    assert len(loop["optimizer"]["state"]) == len(loop["optimizer"]["param_groups"]) > 50
    assert content["trainer"]["hooks"]["LRScheduler"]["last_epoch"] == 4


def test_a_run_can_be_extended_and_follows_the_longer_schedule(config):
    long, polynomial = ["SOLVER.MAX_ITER", 6], ["SOLVER.WARMUP_ITERS", 0]
    train(config(*polynomial))
    note = RateRecorder()
    resumed = train(config(*polynomial, *long), resume=True, hook=note)
    assert resumed.start_iter == 4 and resumed.iter == 6
    assert note.rates[-1] == pytest.approx(resumed.cfg.SOLVER.BASE_LR * (1 - 5 / 6) ** 0.9)


@pytest.mark.parametrize("first, then", [(False, True), (True, False), (True, True)])
def test_mixed_precision_can_be_turned_on_and_off_when_resuming(config, first, then):
    half = ["SOLVER.AMP.DTYPE", "float16"]
    train(config("SOLVER.MAX_ITER", 2, "SOLVER.AMP.ENABLED", first, *half))
    resumed = train(config("SOLVER.AMP.ENABLED", then, *half), resume=True)
    assert resumed.start_iter == 2 and resumed.iter == 4


QUERIES = "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"


@pytest.mark.parametrize(
    "opts, message",
    [
        ([QUERIES, 7], r"query_embed\.weight has shape \(6, 16\), the model expects \(7, 16\)"),
        ([QUERIES, 5], r"query_embed\.weight has shape \(6, 16\), the model expects \(5, 16\)"),
        (
            ["MODEL.FREEZE", "('backbone',)"],
            r"its optimizer has other parameters: \d+,",
        ),
        (["SOLVER.OPTIMIZER", "SGD"], r"SOLVER\.OPTIMIZER: momentum is missing"),
        (["SOLVER.MAX_ITER", 1], r"in iteration 1, expected 0 … 0, because SOLVER\.MAX_ITER is 1"),
    ],
)
def test_a_run_is_resumed_with_its_own_model_and_optimizer_only(continued, tmp_path, opts, message):
    before = (tmp_path / "output" / "model_final.pth").read_bytes()
    made = TinyTrainer(continued(*opts))
    with pytest.raises(ValueError, match=rf"model_final\.pth cannot be resumed: .*{message}"):
        made.resume_or_load(True)
    assert made.start_iter == 0
    assert (tmp_path / "output" / "model_final.pth").read_bytes() == before


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda s: first_state(s).update(exp_avg=torch.zeros(1)),
            r"exp_avg of .* has shape \(1,\)",
        ),
        (lambda s: s.update(iteration=10**12), r"in iteration 1000000000000, expected 0 … 3"),
        (lambda s: s.pop("iteration"), r"training state is damaged .KeyError: 'iteration'"),
        (lambda s: s["_trainer"].pop("optimizer"), r"training state is damaged"),
        (lambda s: s["hooks"]["LRScheduler"].update(last_epoch="x"), r"last_epoch is str"),
        (lambda s: s["hooks"]["LRScheduler"].update(base_lrs=[1.0]), r"base_lrs is list"),
        (lambda s: s["_trainer"].update(grad_scaler={"scale": 1}), r"training state is damaged"),
    ],
)
def test_a_training_state_that_was_tampered_with_is_refused(continued, tmp_path, change, message):
    path = tmp_path / "output" / "model_final.pth"
    content = torch.load(path, weights_only=True)
    change(content["trainer"])
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"model_final\.pth cannot be resumed: .*{message}"):
        TinyTrainer(continued()).resume_or_load(True)


def first_state(trainer_state):
    return trainer_state["_trainer"]["optimizer"]["state"][0]


def test_resuming_a_run_that_is_complete_warns_that_nothing_is_trained(continued, caplog):
    train(continued("SOLVER.MAX_ITER", 2), resume=True)
    assert "Nothing is left to train: SOLVER.MAX_ITER is 2" in caplog.text


# Evaluation


class Count(DatasetEvaluator):
    """An evaluator that returns the number of images, and NaN."""

    def reset(self):
        self.images = 0

    def process(self, inputs, outputs):
        assert outputs[0]["sem_seg"].shape == (4, SIZE, SIZE)
        self.images += len(inputs)

    def evaluate(self):
        return OrderedDict(task={"images": np.int64(self.images), "none": float("nan")})


EXPECTED = {"task": {"images": 2.0, "none": None}}


@pytest.mark.parametrize("names", [("one",), ("one", "two")])
def test_every_evaluation_writes_plain_numbers_by_dataset(config, tmp_path, names):
    cfg = config("DATASETS.TEST", repr(names))
    results = TinyTrainer.test(cfg, TinyTrainer.build_model(cfg), [Count() for _ in names])
    of_one = results if len(names) == 1 else results["one"]
    assert of_one["task"]["images"] == 2
    written = json.loads((tmp_path / "output" / "results.json").read_text())
    assert written == dict.fromkeys(names, EXPECTED)


def test_training_evaluates_at_the_period_and_at_the_end(config, tmp_path, monkeypatch):
    seen = []

    def build_evaluator(cfg, dataset_name, output_folder=None):
        seen.append(dataset_name)
        return Count()

    monkeypatch.setattr(trainer, "build_evaluator", build_evaluator)
    train(config("DATASETS.TEST", "('one',)", "TEST.EVAL_PERIOD", 2))
    assert seen == ["one", "one"]
    assert json.loads((tmp_path / "output" / "results.json").read_text()) == {"one": EXPECTED}
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").open()]
    assert [line["task/images"] for line in lines if "task/images" in line] == [2, 2]


def test_without_a_test_dataset_no_results_are_written(config, tmp_path):
    cfg = config()
    assert TinyTrainer.test(cfg, SimpleNamespace()) == {}
    assert not (tmp_path / "output" / "results.json").exists()


# Loaders and schedule


def test_the_training_loader_uses_the_configured_mapper(config, monkeypatch):
    is_train_values = []

    def mapper(cfg, is_train):
        is_train_values.append(is_train)
        return "mapped"

    monkeypatch.setitem(trainer.DATASET_MAPPER_REGISTRY._obj_map, "test_mapper", mapper)

    def loader(cfg, mapper, dataset):
        return mapper

    monkeypatch.setattr(trainer, "build_detection_train_loader", loader)
    keys = ["INPUT.DATASET_MAPPER_NAME", "test_mapper", "DATASETS.CHECK", "off"]
    keys += ["DATASETS.TRAIN", "('shapes_panoptic_train',)"]
    assert Trainer.build_train_loader(config(*keys)).mapper == "mapped"
    assert is_train_values == [True]


def test_an_unknown_mapper_is_an_error_that_names_the_key_and_the_known_ones(cfg):
    cfg.INPUT.DATASET_MAPPER_NAME = "none"
    with pytest.raises(KeyError, match=r"INPUT.DATASET_MAPPER_NAME.*mask_former_semantic"):
        Trainer.build_train_loader(cfg)


def test_the_schedule_is_the_polynomial_of_deeplab(config):
    cfg = config("SOLVER.WARMUP_ITERS", 0, "SOLVER.POLY_LR_POWER", 0.9, "SOLVER.BASE_LR", 0.01)
    note = RateRecorder()
    train(cfg, hook=note)
    assert note.rates == pytest.approx([0.01 * (1 - step / 4) ** 0.9 for step in range(4)])


# Number of processes


def test_a_config_for_more_processes_is_scaled_to_the_actual_number(config):
    keys = ["SOLVER.REFERENCE_WORLD_SIZE", 4, "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.008]
    keys += ["SOLVER.WARMUP_ITERS", 1, "TEST.EVAL_PERIOD", 2, "VIS_PERIOD", 3]
    tiny_trainer = TinyTrainer(config(*keys, "MODEL.EMA.START_ITER", 2))
    solver = tiny_trainer.cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.MAX_ITER) == (2, 0.002, 16)
    assert (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD) == (4, 8)
    assert (tiny_trainer.cfg.TEST.EVAL_PERIOD, tiny_trainer.cfg.VIS_PERIOD) == (8, 12)
    assert tiny_trainer.cfg.MODEL.EMA.START_ITER == 8 and tiny_trainer.max_iter == 16
    assert tiny_trainer.optimizer.param_groups[-1]["initial_lr"] == 0.002
    assert TinyTrainer(config("VIS_PERIOD", 3)).cfg.VIS_PERIOD == 3


@pytest.mark.parametrize("reference", [3, -1])
def test_an_invalid_reference_world_size_is_an_error(config, reference):
    keys = ["SOLVER.REFERENCE_WORLD_SIZE", reference, "SOLVER.IMS_PER_BATCH", 8]
    with pytest.raises(ValueError, match=r"REFERENCE_WORLD_SIZE is .*IMS_PER_BATCH 8; expected 0"):
        TinyTrainer(config(*keys))


# Classes


def test_a_checkpoint_stores_its_classes_and_fine_tuning_uses_them(config, tmp_path):
    train(config("SOLVER.MAX_ITER", 1))
    saved = torch.load(tmp_path / "output" / "model_final.pth", weights_only=True)
    assert saved["class_names"] == NAMES
    assert [entry["name"] for entry in saved["inference"]["classes"]] == NAMES
    assert str(tmp_path) not in saved["inference"]["config"]
    MetadataCatalog.get("fine_tuned_train").stuff_classes = ["dog", "Car", "sky"]
    keys = ["DATASETS.TRAIN", "('fine_tuned_train',)", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 3]
    keys += ["MODEL.WEIGHTS", tmp_path / "output" / "model_final.pth", "OUTPUT_DIR", tmp_path / "b"]
    tiny_trainer = TinyTrainer(config(*keys, "MODEL.MASK_FORMER.FINETUNE", True))
    tiny_trainer.resume_or_load(resume=False)
    name = "sem_seg_head.predictor.class_embed.bias"
    found, old = tiny_trainer.model.state_dict()[name], saved["model"][name]
    assert found[1:].tolist() == [old[2], old[0], old[4]] and found[0] not in old
    assert tiny_trainer.start_iter == 0
    assert tiny_trainer.optimizer.state_dict()["state"] == {}  # that of the other run is not loaded
