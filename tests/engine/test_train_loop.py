"""A step with several accumulated batches equals a step with one large batch."""

from __future__ import annotations

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Instances
from torch import nn

from mask_former.config.loading import load_cfg
from mask_former.engine.train_loop import TrainLoop
from tests.helpers import planting as p
from tests.helpers.tiny_model import write_tiny_model

SIZE = 64  # pixels


def example(seed, targets):
    g = torch.Generator().manual_seed(seed)
    instances = Instances((SIZE, SIZE))
    instances.gt_classes = torch.randint(4, (targets,), generator=g)
    instances.gt_masks = torch.rand(targets, SIZE, SIZE, generator=g) > 0.5
    return {"image": torch.rand(3, SIZE, SIZE, generator=g) * 255, "instances": instances}


# One image has more targets than the 6 queries, one has none, and batches differ in number.
EXAMPLES = [example(seed, targets) for seed, targets in enumerate([3, 8, 0, 1, 2, 5])]


@pytest.fixture
def cfg(tmp_path):
    config, _ = write_tiny_model(tmp_path, SEMANTIC_ON=True)
    keys = ["MODEL.MASK_FORMER.DEC_LAYERS", "2", "MODEL.MASK_FORMER.DROPOUT", "0.0"]
    return load_cfg(str(config), [*keys, "MODEL.SWIN.DROP_PATH_RATE", "0.0"])


def one_step(model, batches, accumulate_steps, **settings):
    """Return the logged losses and the gradients of a step with learning rate 0."""
    model.zero_grad()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    device = torch.device("cpu")
    loop = TrainLoop(
        model, batches, optimizer, device=device, accumulate_steps=accumulate_steps, **settings
    )
    logged = {}
    loop._write_metrics = lambda losses, data_time: logged.update(losses)
    loop.run_step()
    return logged, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("steps", [2, 3])
def test_accumulated_gradients_and_losses_equal_those_of_one_large_batch(cfg, steps):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    size = len(EXAMPLES) // steps
    parts = [EXAMPLES[start : start + size] for start in range(0, len(EXAMPLES), size)]
    whole_losses, whole = one_step(model, [EXAMPLES], 1)
    losses, gradients = one_step(model, parts, steps)
    assert losses.keys() == whole_losses.keys() and len(losses) == 6
    for name, value in whole_losses.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    assert gradients.keys() == whole.keys() and len(gradients) > 50
    largest = max(value.abs().max().item() for value in whole.values())
    for name, value in whole.items():
        torch.testing.assert_close(
            gradients[name],
            value,
            rtol=1e-3,
            atol=1e-6 * largest,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def test_accumulation_does_not_affect_later_steps(cfg):
    torch.manual_seed(0)
    model = build_model(cfg).train()
    before, _ = one_step(model, [EXAMPLES[:2]], 1)
    one_step(model, [EXAMPLES[:3], EXAMPLES[3:]], 2)
    after, _ = one_step(model, [EXAMPLES[:2]], 1)
    assert {k: v.item() for k, v in before.items()} == {k: v.item() for k, v in after.items()}


def test_losses_of_a_model_without_a_criterion_are_averaged():
    class PerPixel(nn.Linear):
        def forward(self, batch):
            return {"loss": super().forward(batch).mean()}

    model = PerPixel(3, 1)
    parts = list(torch.randn(4, 5, 3))
    whole_loss, whole = one_step(model, [torch.cat(parts)], 1)
    loss, gradients = one_step(model, parts, 4)
    torch.testing.assert_close(loss["loss"], whole_loss["loss"])
    torch.testing.assert_close(gradients, whole)


def test_less_than_one_batch_per_step_is_refused():
    with pytest.raises(ValueError, match=r"SOLVER.ACCUMULATE_STEPS is 0; expected 1 or more"):
        one_step(nn.Linear(1, 1), [], 0)


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset by peer"), EOFError()])
def test_the_error_for_a_dead_data_worker_names_it_and_the_fix(cfg, error):
    class Broken:
        def __iter__(self):
            raise error
            yield

    with pytest.raises(RuntimeError, match=r"A DataLoader worker died .*NUM_WORKERS to 0"):
        one_step(build_model(cfg).train(), Broken(), 1)


# More targets than queries, and no targets


@pytest.mark.usefixtures("restored_catalogs")
def test_more_targets_than_queries_are_warned_about_once(tmp_path):
    with p.warnings() as found:
        p.train(tmp_path, [p.example(9)], [p.example(7)], [p.example(6)])
    assert len(found) == 1 and "has 9 targets" in found[0]


@pytest.mark.usefixtures("restored_catalogs")
def test_as_many_targets_as_queries_give_no_warning(tmp_path):
    with p.warnings() as found:
        p.train(tmp_path, [p.example(6)])
    assert found == []


@pytest.mark.usefixtures("restored_catalogs")
def test_training_on_batches_without_targets_reduces_the_class_loss(tmp_path):
    model = p.model(tmp_path).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batch = [p.example(0), p.example(0)]
    first = model(batch)
    for _ in range(5):
        optimizer.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses["loss_ce"] < first["loss_ce"]
    assert losses["loss_mask"] == losses["loss_dice"] == 0
