"""Two processes with half a batch each get the gradients of one process with the whole batch."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.engine import create_ddp_model
from detectron2.modeling import build_model
from detectron2.structures import Instances

from mask_former.config.keys import get_mask_former_cfg

pytestmark = [pytest.mark.subprocess, pytest.mark.usefixtures("one_thread")]

SIZE = 64  # pixels: two by two cells of the coarsest map


def tiny_cfg():
    """Return the config of a small model without batch statistics and without dropout."""
    cfg = get_mask_former_cfg()
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.MODEL.RESNETS.NORM = "FrozenBN"
    head = cfg.MODEL.SEM_SEG_HEAD
    head.NAME, head.NUM_CLASSES, head.NORM = "MaskFormerHead", 4, "GN"
    head.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    head.CONVS_DIM = head.MASK_DIM = 32
    node = cfg.MODEL.MASK_FORMER
    node.HIDDEN_DIM, node.NHEADS, node.DIM_FEEDFORWARD = 16, 2, 32
    node.DEC_LAYERS, node.NUM_OBJECT_QUERIES, node.DROPOUT = 2, 6, 0.0
    return cfg


def tiny_model():
    torch.manual_seed(0)
    return build_model(tiny_cfg()).train()


def make_batch(counts):
    """Return one example per number of targets, with random labels and masks."""
    g = torch.Generator().manual_seed(1)
    batch = []
    for count in counts:
        instances = Instances((SIZE, SIZE))
        instances.gt_classes = torch.randint(4, (count,), generator=g)
        coarse = torch.rand(count, SIZE // 8, SIZE // 8, generator=g) > 0.5
        instances.gt_masks = coarse.repeat_interleave(8, 1).repeat_interleave(8, 2)
        image = torch.randint(256, (3, SIZE, SIZE), generator=g, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def gradients(model, batch):
    """Return the gradients by kind of loss ("class" or "mask") and unwrapped parameter name."""
    found = {}
    for kind in ("class", "mask"):
        model.zero_grad()
        losses = model(batch)
        assert all(value.isfinite() for value in losses.values()), losses
        # Every loss takes part, so that each parameter has a gradient; the other kind has weight 0.
        weights = {name: float(("_ce" in name) == (kind == "class")) for name in losses}
        assert 0 < sum(weights.values()) < len(weights)
        sum(weights[name] * value for name, value in losses.items()).backward()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                found[kind, name.removeprefix("module.")] = parameter.grad.clone()
    return found


def gradients_on_rank(rank, counts, folder):
    """Run one of the processes below: write its gradients to a file named by its rank."""
    torch.set_num_threads(1)  # torch's thread pool does not survive a fork
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    model = create_ddp_model(tiny_model(), broadcast_buffers=False, device_ids=None)
    half = len(counts) // 2
    of_rank = make_batch(counts)[rank * half :][:half]
    torch.save(gradients(model, of_rank), folder / f"{rank}.pth")
    dist.destroy_process_group()


def one_and_two_processes(counts, folder):
    # Forked, because a spawned process would spend seconds on its imports.
    mp.start_processes(gradients_on_rank, (counts, folder), 2, start_method="fork")
    first, second = (torch.load(folder / f"{rank}.pth") for rank in range(2))
    for key, gradient in first.items():
        assert torch.equal(gradient, second[key]), f"the ranks do not agree on {key}"
    return gradients(tiny_model(), make_batch(counts)), first


def difference(one, two, kind):
    """Return the largest difference, relative to the largest gradient of its parameter."""
    worst = 0.0
    compared = 0
    for (of_kind, name), expected in one.items():
        scale = expected.abs().max().item()
        if of_kind == kind and scale > 1e-7:  # mask losses have no gradient for the class head
            worst = max(worst, (two[kind, name] - expected).abs().max().item() / scale)
            compared += 1
    assert compared > 50
    return worst


@pytest.mark.parametrize("counts", [(2, 3, 1, 4), (5, 0, 2, 3)])
def test_two_processes_with_equal_numbers_of_targets_have_the_gradients_of_one(counts, tmp_path):
    one, two = one_and_two_processes(counts, tmp_path)
    assert difference(one, two, "class") < 1e-3
    assert difference(one, two, "mask") < 1e-3


@pytest.mark.parametrize("counts", [(5, 4, 1, 0), (3, 3, 0, 0)])
def test_with_unequal_numbers_of_targets_only_the_class_loss_differs(counts, tmp_path):
    # The class loss is normalised over each rank's own batch, as published.
    one, two = one_and_two_processes(counts, tmp_path)
    assert difference(one, two, "mask") < 1e-3
    assert difference(one, two, "class") > 1e-2


@pytest.mark.parametrize("counts", [(2, 1, 0, 0), (0, 0, 3, 1), (0, 0, 0, 0)])
def test_without_targets_on_a_rank_or_at_all_the_no_object_score_rises(counts, tmp_path):
    one, two = one_and_two_processes(counts, tmp_path)
    assert all(gradient.isfinite().all() for gradient in two.values())
    no_object = two["class", "sem_seg_head.predictor.class_embed.bias"][-1]
    assert no_object < 0  # a step increases the score
    if not any(counts):
        assert difference(one, two, "class") < 1e-3
        masks = [gradient for (kind, _), gradient in two.items() if kind == "mask"]
        assert all(not gradient.any() for gradient in masks) and len(masks) > 50
