"""Conversion of names in both directions: one to one, and without changing a value."""

import ast

import pytest
import torch
from safetensors.torch import load_file

from mask_former.huggingface import from_huggingface_names, to_huggingface_names
from tests.helpers.huggingface_models import SMALL, their_model
from tests.helpers.paths import ROOT

UNUSED = tuple(
    f"encoder.{swin}.layernorm.{leaf}" for swin in ("model", "swin") for leaf in ("weight", "bias")
)
SWINS = ("Swin", "Mask2Former, Swin")


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("kind", SMALL)
def test_a_round_trip_changes_no_weight(kind):
    theirs = their_model(kind).state_dict()
    ours = from_huggingface_names(theirs)
    back = to_huggingface_names(ours)
    assert_same(from_huggingface_names(back), ours)
    kept = {name for name in theirs if not name.endswith((*UNUSED, "num_batches_tracked"))}
    again = to_huggingface_names(from_huggingface_names(back))
    assert_same(again, back)
    saved = from_huggingface_names({name: theirs[name] for name in kept})
    assert_same(saved, ours)


@pytest.mark.parametrize("kind", SWINS)
def test_names_in_memory_and_names_in_files_are_converted_alike(kind, tmp_path):
    model = their_model(kind)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert set(saved) != set(model.state_dict())
    assert_same(from_huggingface_names(saved), from_huggingface_names(model.state_dict()))
    written = to_huggingface_names(from_huggingface_names(saved))
    assert_same(
        {k: v for k, v in written.items() if not k.endswith(UNUSED)},
        {k: v for k, v in saved.items() if not k.endswith(UNUSED)},
    )


@pytest.mark.parametrize("kind", SWINS)
def test_the_norm_that_is_not_converted_has_no_effect(kind):
    model = their_model(kind)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = model(image).masks_queries_logits
        unused = [name for name in model.state_dict() if name.endswith(UNUSED)]
        assert len(unused) == 2
        for name in unused:
            model.get_parameter(name).normal_()
        assert torch.equal(model(image).masks_queries_logits, before)


def test_counters_of_batch_norms_are_kept_or_set_to_0():
    ours = {
        "backbone.stem.conv1.norm.running_mean": torch.zeros(2),
        "backbone.stem.conv1.norm.num_batches_tracked": torch.tensor(7),
    }
    stem = "model.pixel_level_module.encoder.embedder.embedder.normalization."
    assert to_huggingface_names(ours)[stem + "num_batches_tracked"] == 7
    del ours["backbone.stem.conv1.norm.num_batches_tracked"]
    assert to_huggingface_names(ours)[stem + "num_batches_tracked"] == 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"1 of 1 names are unknown .*: bert\.weight"):
        from_huggingface_names({"bert.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"1 of 1 weights have no count.*pixel_decoder\.input_pr"):
        to_huggingface_names({"sem_seg_head.pixel_decoder.input_proj.weight": torch.zeros(1)})


def test_a_value_projection_without_query_and_key_is_refused():
    name = "model.transformer_module.decoder.layers.0.self_attn.v_proj.weight"
    with pytest.raises(ValueError, match=r"Not all of query.*self_attn\.in_proj_weight"):
        from_huggingface_names({name: torch.zeros(2, 2)})


@pytest.mark.parametrize("value", [torch.tensor(1.0), torch.zeros(3, 3)])
def test_a_query_of_another_shape_than_its_key_and_value_is_refused(value):
    theirs = their_model("Swin").state_dict()
    name = next(name for name in theirs if name.endswith("self_attn.q_proj.weight"))
    with pytest.raises(ValueError, match=r"in_proj_weight must have one shape, found \[\("):
        from_huggingface_names({**theirs, name: value})


def test_two_names_of_one_weight_are_refused():
    theirs = their_model("Swin").state_dict()
    name = next(name for name in theirs if "_attn.o_proj.weight" in name)
    second = name.replace("o_proj", "out_proj")
    with pytest.raises(ValueError, match=rf"Two names stand for one weight, .*{second}"):
        from_huggingface_names({**theirs, second: theirs[name]})


def test_only_the_benchmarks_peer_imports_transformers():
    package = ROOT / "mask_former"
    peer = package / "engine" / "benchmarking" / "transformers_peer.py"
    for file in set(package.rglob("*.py")) - {peer}:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [getattr(node, "module", None), *(alias.name for alias in node.names)]
                assert "transformers" not in {str(name).split(".")[0] for name in names}, file
