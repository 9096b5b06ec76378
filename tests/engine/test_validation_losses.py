"""Validation losses: the training losses without randomness, and no effect on training."""

from __future__ import annotations

import json
import random
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from mask_former.engine import validation_losses as module
from mask_former.engine.validation_losses import (
    build_validation_loader,
    preserved_randomness,
    validation_losses,
)
from tests.helpers.tiny_trainer import TinyTrainer, make_example, train

DROPPING = ["MODEL.MASK_FORMER.DROPOUT", 0.5, "MODEL.SWIN.DROP_PATH_RATE", 0.5]
BATCHES = [[make_example(2)], [make_example(3)]]


def validated(cfg, model, batches=BATCHES):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.TEST = ("one",)
    return validation_losses(cfg, model, lambda *_: batches)


def test_validation_losses_are_the_mean_of_the_images_training_losses(config):
    cfg = config("MODEL.MASK_FORMER.DEC_LAYERS", 2)  # no dropout, so training is deterministic
    model = build_model(cfg).train()
    found = validated(cfg, model)
    expected = [model(batch) for batch in BATCHES]
    assert found.keys() == {f"val_{name}" for name in expected[0]} | {"val_total_loss"}
    assert len(found) == 7
    for name in expected[0]:
        mean = sum(losses[name].item() for losses in expected) / 2
        assert found[f"val_{name}"] == pytest.approx(mean, rel=1e-5), name
    parts = sum(value for name, value in found.items() if name != "val_total_loss")
    assert found["val_total_loss"] == pytest.approx(parts)


def test_dropout_is_off_and_the_losses_are_reproducible(config):
    cfg = config(*DROPPING)
    model = build_model(cfg).train()
    assert validated(cfg, model) == validated(cfg, model)
    without_dropout = build_model(config()).train()
    without_dropout.load_state_dict(model.state_dict())
    assert validated(cfg, model) == pytest.approx(validated(config(), without_dropout), rel=1e-5)


def test_the_precision_is_that_of_training_not_of_inference(config):
    cfg = config()
    model = build_model(cfg).train()
    rounded = build_model(config("TEST.AMP.ENABLED", True)).train()
    rounded.load_state_dict(model.state_dict())
    assert validated(cfg, rounded) == validated(cfg, model)


def test_sampled_points_are_always_the_same(config):
    cfg = config("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", 16)
    model = build_model(cfg).train()
    torch.manual_seed(1)
    one = validated(cfg, model)
    torch.manual_seed(2)
    assert validated(cfg, model) == one


def test_the_model_is_not_changed(config):
    model = build_model(config()).train()
    model.backbone.patch_embed.eval()  # like a frozen norm
    before = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    validated(config(), model)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_random_state_is_restored():
    def draw():
        return random.random(), np.random.rand(), torch.rand(()).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with preserved_randomness(torch.device("cpu")):
        inside = draw()
    assert draw() == expected != inside
    with preserved_randomness(torch.device("cpu")):
        assert draw() == inside


def test_the_average_is_over_all_processes(config, monkeypatch):
    cfg = config()
    model = build_model(cfg).train()
    alone = validated(cfg, model, [BATCHES[0], BATCHES[1], BATCHES[1]])
    with torch.no_grad(), module.evaluation_mode(model):
        other = module._sums(model, [BATCHES[1], BATCHES[1]], torch.no_grad())
    monkeypatch.setattr(module.comm, "all_gather", lambda own: [own, other])
    assert validated(cfg, model, BATCHES[:1]) == pytest.approx(alone, rel=1e-6)


def validate_on_rank(rank, cfg, state, folder):
    torch.set_num_threads(1)  # torch's thread pool does not survive a fork
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = build_model(cfg).train()
    model.load_state_dict(state)
    shares = [BATCHES, BATCHES[:1]]
    torch.save(validated(cfg, model, shares[rank]), folder / f"{rank}.pth")
    dist.destroy_process_group()


@pytest.mark.subprocess
def test_processes_may_have_different_numbers_of_images(config, tmp_path):
    cfg = config()
    model = build_model(cfg).train()
    alone = validated(cfg, model, [*BATCHES, BATCHES[0]])
    arguments = (cfg, model.state_dict(), tmp_path)
    # Forked, because a spawned process would spend seconds on its imports.
    context = mp.start_processes(validate_on_rank, arguments, 2, join=False, start_method="fork")
    deadline = time.monotonic() + 60
    while not context.join(timeout=1):
        if time.monotonic() > deadline:
            for process in context.processes:
                process.kill()
            pytest.fail("the processes wait for each other")
    assert torch.load(tmp_path / "0.pth") == pytest.approx(alone, rel=1e-5)
    assert torch.load(tmp_path / "1.pth") == {}


# In training


class Validating(TinyTrainer):
    @classmethod
    def build_validation_loader(cls, cfg, dataset_name):
        np.random.rand(), torch.rand(())  # a mapper may draw random numbers
        return BATCHES


def run(cfg):
    tiny_trainer = Validating(cfg)
    tiny_trainer.resume_or_load(False)
    tiny_trainer.test = lambda *_: {}
    tiny_trainer.train()
    return tiny_trainer


def test_validation_losses_are_written_and_do_not_affect_training(config, tmp_path):
    keys = ["DATASETS.TEST", "('one',)", "TEST.EVAL_PERIOD", 2, *DROPPING]
    plain = run(config(*keys, "OUTPUT_DIR", tmp_path / "plain"))
    tiny_trainer = run(config(*keys, "TEST.VAL_LOSS", True))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(tiny_trainer.model.state_dict()[name], value), name
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").open()]
    written = [line for line in lines if "val_total_loss" in line]
    assert [line["iteration"] for line in written] == [1, 4]
    assert {"val_loss_ce", "val_loss_mask", "val_loss_dice"} < written[0].keys()
    assert written[0]["val_total_loss"] != written[1]["val_total_loss"]


def test_val_loss_off_writes_no_validation_losses(config, tmp_path):
    train(config())
    assert "val_" not in (tmp_path / "output" / "metrics.json").read_text()


# The examples


@pytest.fixture
def dataset(tmp_path):
    """Name of a dataset of two 40×80 images with one colour and one class in each half."""
    labels = np.repeat([[0, 1]], 40, axis=1).repeat(40, axis=0).astype(np.uint8)
    records = []
    for number in range(2):
        image, label = tmp_path / f"{number}.png", tmp_path / f"{number}_label.png"
        Image.fromarray(np.stack([labels * 200] * 3, -1)).save(image)
        Image.fromarray(labels).save(label)
        records.append({"file_name": str(image), "sem_seg_file_name": str(label)})
    DatasetCatalog.register("tiny_validation", lambda: records)
    MetadataCatalog.get("tiny_validation").set(ignore_label=255, stuff_classes=list("abcd"))
    yield "tiny_validation"
    DatasetCatalog.remove("tiny_validation")
    MetadataCatalog.remove("tiny_validation")


def test_examples_come_from_the_training_mapper_at_test_size(config, dataset):
    cfg = config(
        *["DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", f"('{dataset}',)"],
        *["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", (8, 8), "INPUT.COLOR_AUG_SSD", True],
        *["INPUT.CROP.TYPE", "absolute", "INPUT.SIZE_DIVISIBILITY", 64],
        *["INPUT.MIN_SIZE_TEST", 20, "DATALOADER.NUM_WORKERS", 0],
    )
    for _ in range(4):  # never flipped
        examples = [example for (example,) in build_validation_loader(cfg, dataset)]
        assert len(examples) == 2
        for example in examples:
            assert example["image"].shape == (3, 20, 40)
            assert example["image"][0, 10].unique().tolist()[-1] == 200
            assert example["image"][0, 10, 0] == 0
            assert example["instances"].gt_classes.tolist() == [0, 1]
            assert example["instances"].gt_masks[1, :, 20:].all()


def test_examples_of_a_mapper_with_large_scale_jitter_fit_into_its_square(config, dataset):
    cfg = config(
        *["DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", f"('{dataset}',)"],
        *["INPUT.DATASET_MAPPER_NAME", "mask_former_semantic_lsj", "INPUT.IMAGE_SIZE", 40],
        *["INPUT.PAD_VALUE", 7, "DATALOADER.NUM_WORKERS", 0],
    )
    for _ in range(4):  # neither scaled at random nor flipped
        (example,), _ = build_validation_loader(cfg, dataset)
        assert example["image"].shape == (3, 40, 40)
        assert example["image"][0, 20:].unique().tolist() == [7]
        assert example["instances"].gt_masks[1, :20, 20:].all()
