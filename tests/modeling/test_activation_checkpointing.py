"""Activation checkpointing keeps fewer bytes for the backward pass and changes nothing else."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from torch import nn

from mask_former.modeling.activation_checkpointing import checkpoint_activations, wants_checkpoints
from tests.helpers.small_backbones import resnet, swin, timm


def run(backbone, image):
    """Return gradients and buffers by name, and the bytes of activations kept for backward."""
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(1)  # seeds drop path
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        maps = backbone(image)
    sum(one.square().mean() for one in maps.values()).backward()
    gradients = {name: p.grad.clone() for name, p in backbone.named_parameters()}
    buffers = {name: b.clone() for name, b in backbone.named_buffers()}
    weights = {p.untyped_storage().data_ptr() for p in backbone.parameters()}
    return gradients, buffers, sum(size for pointer, size in kept.items() if pointer not in weights)


@pytest.mark.parametrize("kind", [resnet, swin, timm])
def test_gradients_and_buffers_are_unchanged_and_less_than_half_is_kept(cfg, kind):
    kind(cfg)
    backbones = []
    for _ in range(2):
        torch.manual_seed(0)
        backbones.append(build_backbone(cfg, ShapeSpec(channels=3)).train())
    checkpoint_activations(backbones[1])
    assert backbones[0].state_dict().keys() == backbones[1].state_dict().keys()
    image = torch.randn(2, 3, 96, 64)
    plain, checkpointed = (run(backbone, image) for backbone in backbones)
    for found, expected in zip(checkpointed[:2], plain[:2], strict=True):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, msg=lambda m, n=name: f"{n}: {m}")
    assert checkpointed[2] < 0.5 * plain[2]


@pytest.mark.parametrize(("kind", "wanted"), [(swin, True), (resnet, False)])
def test_the_key_of_swin_turns_it_on_for_swin_only(cfg, kind, wanted):
    kind(cfg)
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert not wants_checkpoints(cfg, backbone)
    cfg.MODEL.SWIN.USE_CHECKPOINT = True
    backbone = build_backbone(cfg, ShapeSpec(channels=3))
    assert wants_checkpoints(cfg, backbone) == wanted
    cfg.MODEL.ACTIVATION_CHECKPOINTING = True
    assert wants_checkpoints(cfg, backbone)


def test_a_backbone_without_blocks_is_refused():
    with pytest.raises(ValueError, match="ACTIVATION_CHECKPOINTING is True, but Conv2d has no"):
        checkpoint_activations(nn.Conv2d(3, 3, 1))
