"""Losses of validation: those of training without chance, and training does not notice."""

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


def test_they_are_the_mean_of_the_training_losses_of_the_images(config):
    cfg = config("MODEL.MASK_FORMER.DEC_LAYERS", 2)  # without dropout training has no chance
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


def test_nothing_is_dropped_and_twice_gives_the_same(config):
    cfg = config(*DROPPING)
    model = build_model(cfg).train()
    assert validated(cfg, model) == validated(cfg, model)
    quiet = build_model(config()).train()
    quiet.load_state_dict(model.state_dict())
    assert validated(cfg, model) == pytest.approx(validated(config(), quiet), rel=1e-5)


def test_they_are_as_precise_as_training_whatever_inference_is(config):
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


def test_the_model_is_afterwards_as_it_was(config):
    model = build_model(config()).train()
    model.backbone.patch_embed.eval()  # as a frozen norm
    before = [module.training for module in model.modules()]
    state = {name: value.clone() for name, value in model.state_dict().items()}
    validated(config(), model)
    assert [module.training for module in model.modules()] == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_random_numbers_go_on_as_if_nothing_had_been():
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
    torch.set_num_threads(1)  # a fork has no other threads of torch's
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
    # Forked, as a spawned process would spend seconds on its imports.
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
        np.random.rand(), torch.rand(())  # what a mapper may draw
        return BATCHES


def run(cfg):
    made = Validating(cfg)
    made.resume_or_load(False)
    made.test = lambda *_: {}
    made.train()
    return made


def test_a_run_with_them_trains_as_one_without_and_writes_them(config, tmp_path):
    keys = ["DATASETS.TEST", "('one',)", "TEST.EVAL_PERIOD", 2, *DROPPING]
    plain = run(config(*keys, "OUTPUT_DIR", tmp_path / "plain"))
    made = run(config(*keys, "TEST.VAL_LOSS", True))
    for name, value in plain.model.state_dict().items():
        assert torch.equal(made.model.state_dict()[name], value), name
    lines = [json.loads(line) for line in (tmp_path / "output" / "metrics.json").open()]
    written = [line for line in lines if "val_total_loss" in line]
    assert [line["iteration"] for line in written] == [1, 4]
    assert {"val_loss_ce", "val_loss_mask", "val_loss_dice"} < written[0].keys()
    assert written[0]["val_total_loss"] != written[1]["val_total_loss"]


def test_off_there_are_none(config, tmp_path):
    train(config())
    assert "val_" not in (tmp_path / "output" / "metrics.json").read_text()


# The examples


@pytest.fixture
def dataset(tmp_path):
    """Two images, 40×80 pixels, one colour and one class in each half."""
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


def test_examples_are_the_training_mappers_at_the_size_of_testing(config, dataset):
    cfg = config(
        *["DATASETS.TRAIN", f"('{dataset}',)", "DATASETS.TEST", f"('{dataset}',)"],
        *["INPUT.CROP.ENABLED", True, "INPUT.CROP.SIZE", (8, 8), "INPUT.COLOR_AUG_SSD", True],
        *["INPUT.CROP.TYPE", "absolute", "INPUT.SIZE_DIVISIBILITY", 64],
        *["INPUT.MIN_SIZE_TEST", 20, "DATALOADER.NUM_WORKERS", 0],
    )
    for _ in range(4):  # none is flipped
        examples = [example for (example,) in build_validation_loader(cfg, dataset)]
        assert len(examples) == 2
        for example in examples:
            assert example["image"].shape == (3, 20, 40)
            assert example["image"][0, 10].unique().tolist()[-1] == 200
            assert example["image"][0, 10, 0] == 0
            assert example["instances"].gt_classes.tolist() == [0, 1]
            assert example["instances"].gt_masks[1, :, 20:].all()
