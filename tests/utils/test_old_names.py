"""Names of parameters in old checkpoints become the current ones."""

import gzip
import itertools
import json

import pytest

from mask_former.utils.old_names import rename_old_layout
from tests.helpers.paths import GOLDEN

PUBLISHED = GOLDEN / "published_state_dicts.json.gz"

OLD_NAMES = {
    "sem_seg_head.adapter_1.weight": "sem_seg_head.pixel_decoder.adapter_1.weight",
    "sem_seg_head.layer_4.norm.bias": "sem_seg_head.pixel_decoder.layer_4.norm.bias",
    "sem_seg_head.mask_features.bias": "sem_seg_head.pixel_decoder.mask_features.bias",
    "sem_seg_head.input_proj.weight": "sem_seg_head.pixel_decoder.input_proj.weight",
    "sem_seg_head.transformer.encoder.layers.0.linear1.bias": (
        "sem_seg_head.pixel_decoder.transformer.encoder.layers.0.linear1.bias"
    ),
}
KEPT_NAMES = [
    "backbone.res2.0.conv1.weight",
    "sem_seg_head.pixel_decoder.layer_4.weight",
    "sem_seg_head.predictor.weight",
    "sem_seg_head.predictor.input_proj.weight",
    "sem_seg_head.predictor.transformer.decoder.norm.weight",
    "sem_seg_head.decoder.res5.project_conv.weight",  # DeepLab's
    "sem_seg_head.p2.0.weight",  # the semantic FPN's
    "other.sem_seg_head.layer_1.weight",
    "sem_seg_head.layer_norm.weight",
    "criterion.empty_weight",
]


def test_only_parameters_of_the_pixel_decoder_are_renamed():
    old = {name: name for name in [*OLD_NAMES, *KEPT_NAMES]}
    expected = {name: value for value, name in OLD_NAMES.items()} | {k: k for k in KEPT_NAMES}
    assert rename_old_layout(old) == expected


@pytest.mark.parametrize("prefix", ["", "module.", "module.module."])
@pytest.mark.parametrize("size", range(4))
def test_renaming_is_idempotent_and_loses_no_name(prefix, size):
    for names in itertools.combinations([*OLD_NAMES, *OLD_NAMES.values(), *KEPT_NAMES], size):
        weights = {prefix + name: name for name in names}
        once = rename_old_layout(weights)
        assert rename_old_layout(once) == once
        assert sorted(once.values()) == sorted(names)  # no name is lost or overwritten


def test_early_mask2former_names_of_the_queries_are_converted():
    old = "sem_seg_head.predictor.static_query.weight"
    new = "sem_seg_head.predictor.query_feat.weight"
    assert rename_old_layout({old: 1}) == rename_old_layout({new: 1}) == {new: 1}
    assert rename_old_layout({old: 1, new: 2}) == {old: 1, new: 2}
    assert rename_old_layout({old: 1}, keep={old}) == {old: 1}
    assert rename_old_layout({"other.predictor.static_query.weight": 1}) == {
        "other.predictor.static_query.weight": 1
    }


def test_a_name_that_the_model_has_is_kept():
    name = "sem_seg_head.mask_features.weight"
    assert rename_old_layout({name: 1}, keep={name}) == {name: 1}


def test_the_old_names_of_every_published_model_are_converted():
    published = json.loads(gzip.decompress(PUBLISHED.read_bytes()))
    assert len(published) == 30
    for names in published.values():
        old = {name.replace("sem_seg_head.pixel_decoder.", "sem_seg_head."): name for name in names}
        assert len(old) == len(names) and list(old) != list(names)
        assert all(new == name for new, name in rename_old_layout(old).items())
