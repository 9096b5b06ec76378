"""EoMT's weights under the official names, those of transformers and of timm, and back."""

from __future__ import annotations

import json
import lzma

import pytest
import torch
from detectron2.modeling import build_model

from mask_former.checkpoint.eomt_names import (
    from_official,
    from_timm,
    from_transformers,
    to_official,
    to_transformers,
)
from mask_former.config.keys import get_mask_former_cfg
from tests.helpers.paths import GOLDEN, ROOT
from tests.helpers.tiny_networks import tiny_eomt

pytest.importorskip("timm")

CONFIGS = {
    "dinov2-S coco panoptic 640": "dinov2/coco/panoptic/eomt_small_640",
    "dinov2-B coco panoptic 640": "dinov2/coco/panoptic/eomt_base_640",
    "dinov2-L coco panoptic 640": "dinov2/coco/panoptic/eomt_large_640",
    "dinov2-L ade20k semantic 512": "dinov2/ade20k/semantic/eomt_large_512",
    "dinov2-g coco panoptic 1280": "dinov2/coco/panoptic/eomt_giant_1280",
    "dinov3-S coco panoptic 640": "dinov3/coco/panoptic/eomt_small_640_2x",
    "dinov3-L coco panoptic 640": "dinov3/coco/panoptic/eomt_large_640",
}
PUBLISHED = json.loads(lzma.decompress((GOLDEN / "eomt_state_dicts.json.xz").read_bytes()))
ROTARY = "vit_tiny_patch16_dinov3_qkvb"


@pytest.mark.parametrize("name", CONFIGS)
def test_names_and_shapes_are_the_published_ones_in_both_forms(name: str) -> None:
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(ROOT / "configs" / "eomt" / f"{CONFIGS[name]}.yaml"))
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        state = build_model(cfg).state_dict()
    for form, rename, back in (
        ("official", to_official, from_official),
        ("transformers", to_transformers, from_transformers),
    ):
        renamed = rename(state)
        found = {key: list(value.shape) for key, value in renamed.items()}
        assert found == PUBLISHED[name][form]
        ours = back({key: value.to("meta") for key, value in renamed.items()})
        kept = {key for key in state if not key.endswith(".k_bias")}
        assert {key: ours[key].shape for key in ours} == {key: state[key].shape for key in kept}


@pytest.mark.parametrize("vit", ["test_vit", ROTARY])
def test_values_survive_both_renamings(vit: str) -> None:
    state = tiny_eomt(vit=vit).state_dict()
    for rename, back in ((to_official, from_official), (to_transformers, from_transformers)):
        found = back(rename(state))
        for name, value in state.items():
            if not name.endswith(".k_bias"):
                assert torch.equal(found[name], value), name


def test_a_swiglu_is_cut_into_gate_and_value() -> None:
    state = tiny_eomt().state_dict()
    for name in [name for name in state if ".mlp.fc2.weight" in name]:
        state[name] = state[name][:, : state[name].shape[1] // 2]
    found = to_transformers(state)
    fc1 = state["backbone.vit.blocks.0.mlp.fc1.weight"]
    gate, value = (found[f"layers.0.mlp.{part}_proj.weight"] for part in ("gate", "up"))
    assert torch.equal(torch.cat((gate, value)), fc1)
    assert torch.equal(from_transformers(found)["backbone.vit.blocks.0.mlp.fc1.weight"], fc1)
    old = {k.replace("mlp.down_proj", "mlp.weights_out"): v for k, v in found.items()}
    old = {k: v for k, v in old.items() if "_proj" not in k or "attention" in k}
    old["layers.0.mlp.weights_in.weight"] = fc1
    assert torch.equal(from_transformers(old)["backbone.vit.blocks.0.mlp.fc1.weight"], fc1)


def test_a_whole_vit_is_cut_before_its_last_blocks() -> None:
    import timm

    vit = timm.create_model("test_vit").state_dict()
    found = from_timm(vit, 2)
    assert torch.equal(found["backbone.vit.blocks.3.norm1.weight"], vit["blocks.3.norm1.weight"])
    for index in (0, 1):
        expected = vit[f"blocks.{4 + index}.mlp.fc1.weight"]
        assert torch.equal(found[f"sem_seg_head.blocks.{index}.mlp.fc1.weight"], expected)
    assert torch.equal(found["sem_seg_head.norm.weight"], vit["norm.weight"])
    assert not any("head.weight" in name for name in found)


def test_a_missing_part_of_a_joined_tensor_is_named() -> None:
    state = to_transformers(tiny_eomt().state_dict())
    del state["layers.1.attention.k_proj.bias"]
    with pytest.raises(ValueError, match=r"not layers\.1\.attention\.k_proj\.bias"):
        from_transformers(state)


def test_weights_without_the_number_of_blocks_are_refused() -> None:
    state = to_official(tiny_eomt().state_dict())
    del state["network.attn_mask_probs"]
    with pytest.raises(ValueError, match="attn_mask_probs"):
        from_official(state)
