"""Plain ViTs as backbones: the ViT is timm's, the pyramid detectron2's; freezing, layer decay."""

import pytest
import torch
from torch import nn

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.modeling.backbone.timm_weights import convert_timm_checkpoint
from mask_former.modeling.backbone.vit import ViTBackbone
from mask_former.solver.optimizer import parameter_groups
from mask_former.utils.weight_files import write_weights

timm = pytest.importorskip("timm", reason="the extra 'timm' is not installed")

TINY = "test_vit"
DINOV2 = "vit_small_patch14_reg4_dinov2"


def make(name=TINY, **options):
    torch.manual_seed(0)
    return ViTBackbone(name, out_channels=8, **options)


@pytest.fixture(scope="module")
def backbone():
    return make().eval()


@torch.no_grad()
def test_the_vit_computes_what_timms_does(backbone):
    whole = timm.create_model(TINY, img_size=96).eval()  # for one size only
    weights = convert_timm_checkpoint(TINY, timm.create_model(TINY).state_dict())
    backbone.load_state_dict(
        {name.removeprefix("backbone."): value for name, value in weights.items()}, strict=False
    )
    state = {k: v for k, v in backbone.vit.state_dict().items() if k != "pos_embed"}
    whole.load_state_dict(state, strict=False)
    grid = backbone.vit.patch_embed.grid_size
    whole.pos_embed.copy_(
        timm.layers.resample_abs_pos_embed(backbone.vit.pos_embed, [6, 6], list(grid))
    )
    images = torch.randn(2, 3, 96, 96)
    patches = whole.forward_features(images)[:, whole.num_prefix_tokens :]
    found = backbone.vit.forward_intermediates(images, indices=1, norm=True)[1][0]
    torch.testing.assert_close(found, patches.transpose(1, 2).unflatten(2, (6, 6)))
    (same,) = backbone.pyramid.simfp_4(found)[None]
    torch.testing.assert_close(backbone(images)["res4"], same)


@torch.no_grad()
def test_images_of_any_size_give_the_maps_of_the_padded_image(backbone):
    images = torch.randn(1, 3, 70, 33)
    padded = torch.zeros(1, 3, 96, 64)
    padded[..., :70, :33] = images
    expected = backbone(padded)
    for name, found in backbone(images).items():
        stride = backbone.output_shape()[name].stride
        height, width = -(-70 // stride), -(-33 // stride)
        torch.testing.assert_close(found, expected[name][..., :height, :width])


def test_a_checkpoint_of_another_patch_size_is_loaded_whole(tmp_path):
    file = tmp_path / "vit.safetensors"
    torch.manual_seed(1)
    weights = convert_timm_checkpoint(TINY, timm.create_model(TINY).state_dict())
    write_weights(weights, file)
    model = nn.Module()
    model.backbone = make(patch_size=8)
    Checkpointer(model).load(str(file))
    kernel = "backbone.vit.patch_embed.proj.weight"
    own = model.state_dict()
    assert [k for k, v in weights.items() if k != kernel and not torch.equal(own[k], v)] == []
    expected = timm.layers.resample_patch_embed(weights[kernel], [8, 8])
    torch.testing.assert_close(own[kernel], expected)


def test_a_vit_has_as_many_positions_as_its_published_weights():
    with torch.device("meta"):
        published = timm.create_model(DINOV2, num_classes=0).state_dict()
        own = make(DINOV2).vit.state_dict()
    kernel = "patch_embed.proj.weight"
    shapes = {name: tuple(value.shape) for name, value in published.items()}
    assert {name: tuple(value.shape) for name, value in own.items()} == shapes | {
        kernel: (*shapes[kernel][:2], 16, 16)
    }


def step(backbone):
    """Run a training step; return the names of the parameters that moved."""
    before = {name: value.detach().clone() for name, value in backbone.named_parameters()}
    optimizer = torch.optim.SGD(backbone.parameters(), 0.1)
    sum(one.square().sum() for one in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    optimizer.step()
    return {n for n, value in backbone.named_parameters() if not torch.equal(value, before[n])}


@pytest.mark.parametrize("freeze_at", [0, 2, 6, -1])
def test_frozen_blocks_stay_fixed(freeze_at):
    backbone = make(freeze_at=freeze_at).train()
    depth = len(backbone.vit.blocks)
    first = depth if freeze_at == -1 else freeze_at  # the first block that is trained
    trained = tuple(f"vit.blocks.{index}." for index in range(first, depth)) + ("pyramid.",)
    if first < depth:
        trained += ("vit.norm.",)
    names = {name for name, _ in backbone.named_parameters()}
    expected = names if not first else {name for name in names if name.startswith(trained)}
    assert step(backbone) == expected


def test_frozen_blocks_run_as_in_evaluation():
    backbone = make(freeze_at=3, drop_path_rate=0.5).train()
    assert [block.training for block in backbone.vit.blocks] == [False] * 3 + [True] * 3
    assert not backbone.vit.patch_embed.training and backbone.pyramid.training
    assert not any(module.training for module in backbone.eval().modules())


def test_layer_decay_lowers_the_rate_of_each_block_below_the_last(cfg):
    model = nn.Module()
    model.backbone = make()
    cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER, cfg.SOLVER.LAYER_DECAY = 1.0, 1.0, 0.5
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    for group in parameter_groups(cfg, model):
        name = name_of[group["params"][0]].removeprefix("backbone.")
        block = int(name.split(".")[2]) if ".blocks." in name else 0
        is_last = name.startswith(("pyramid.", "vit.norm."))
        assert group["lr"] == (1.0 if is_last else 0.5 ** (5 - block)), name
        assert group.get("is_vit", False) == name.startswith("vit.")


def test_a_vit_with_rotary_embeddings_is_a_backbone():
    backbone = make("eva02_tiny_patch14_224", freeze_at=12).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    assert {name: tuple(one.shape[2:]) for name, one in maps.items()} == {
        "res2": (16, 24), "res3": (8, 12), "res4": (4, 6), "res5": (2, 3),
    }  # fmt: skip


def test_dinov3_rescales_positions_in_training_unless_they_are_frozen():
    with torch.device("meta"):
        trained = make("vit_small_patch16_dinov3").train()
        frozen = make("vit_small_patch16_dinov3", freeze_at=1).train()
    assert trained.vit.rope.rescale_coords == 2.0
    assert trained.vit.rope.training and not frozen.vit.rope.training


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet18"}, "MODEL.VIT.NAME is 'resnet18', which is not a plain ViT"),
        ({"name": "vit_smal"}, "MODEL.VIT.NAME is 'vit_smal', which is not one of timm"),
        ({"patch_size": 14}, "MODEL.VIT.PATCH_SIZE is 14, expected 8 or 16"),
        ({"freeze_at": 7}, r"MODEL.VIT.FREEZE_AT is 7, expected 0 .*1 … 6.*-1"),
        ({"freeze_at": -2}, "MODEL.VIT.FREEZE_AT is -2"),
    ],
)
def test_an_invalid_setting_is_an_error_that_names_its_key(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
