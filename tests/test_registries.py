"""Plug-ins are registered once and found by name; the error about an unknown name lists all."""

import pytest
from detectron2.data import DatasetCatalog
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from mask_former.config.keys import get_mask_former_cfg
from mask_former.data.datasets.catalog import register_tables
from mask_former.registries import (
    CRITERION_REGISTRY,
    DATASET_MAPPER_REGISTRY,
    LOSS_REGISTRY,
    MATCHER_REGISTRY,
    TRANSFORMER_DECODER_REGISTRY,
    Registry,
    lookup,
    plugins,
)
from tests.helpers.plugins import ALL_REGISTRIES

# Modules in the folders of plug-ins that register nothing themselves.
HELPERS = {
    "losses.build",
    "losses.mask_losses",
    "losses.mask_terms",
    "losses.nonfinite",
    "losses.point_sampling",
    "modeling.activation_checkpointing",
    "modeling.backbone.timm_depthwise",
    "modeling.backbone.timm_vit",
    "modeling.backbone.timm_weights",
    "modeling.heads.eomt_annealing",
    "modeling.batch_targets",
    "modeling.deep_supervision",
    "modeling.inference_settings",
    "modeling.inner_outputs",
    "modeling.pixel_decoder.base",
    "modeling.test_time_augmentation",
    "modeling.transformer_decoder.base",
    "data.mappers.base",
    "data.mappers.inference",
}


def entries():
    """Return all entries of all registries as (registry, name) -> object."""
    return {(registry._name, name): obj for registry in ALL_REGISTRIES for name, obj in registry}


def test_an_entry_has_the_name_of_its_object_or_a_given_one():
    registry = Registry("TEST")

    @registry.register()
    def plain():
        pass

    @registry.register(name="another")
    class Thing:
        pass

    registry.register(len)
    registry.register(sum, name="total")
    assert dict(registry) == {"plain": plain, "another": Thing, "len": len, "total": sum}


def test_lookup_returns_the_entry():
    assert lookup(LOSS_REGISTRY, "masks", "ANY.KEY") is LOSS_REGISTRY.get("masks")
    assert lookup(BACKBONE_REGISTRY, "D2SwinTransformer", "ANY.KEY").__name__ == "D2SwinTransformer"


@pytest.mark.parametrize("registry", ALL_REGISTRIES, ids=lambda registry: registry._name)
def test_the_error_about_an_unknown_name_has_the_key_and_every_known_name(registry):
    with pytest.raises(KeyError) as error:
        lookup(registry, "Unheard", "MODEL.SOME.KEY")
    text = str(error.value)
    assert "MODEL.SOME.KEY is 'Unheard', which is not registered" in text
    known = [name for name, _ in registry]
    assert known and all(repr(name) in text for name in known)


def test_the_published_names_are_registered():
    published = {
        META_ARCH_REGISTRY: ["MaskFormer"],
        BACKBONE_REGISTRY: ["D2SwinTransformer", "build_timm_backbone"],
        SEM_SEG_HEADS_REGISTRY: [
            "MaskFormerHead",
            "BasePixelDecoder",
            "TransformerEncoderPixelDecoder",
        ],
        TRANSFORMER_DECODER_REGISTRY: ["TransformerPredictor"],
        CRITERION_REGISTRY: ["SetCriterion"],
        MATCHER_REGISTRY: ["HungarianMatcher"],
        LOSS_REGISTRY: ["labels", "masks"],
        DATASET_MAPPER_REGISTRY: ["mask_former_semantic", "mask_former_panoptic", "detr_panoptic"],
    }
    for registry, names in published.items():
        assert [name for name in names if name not in registry] == []


def test_registering_twice_has_no_further_effect():
    plugins()
    before, datasets = entries(), set(DatasetCatalog.list())
    plugins()
    register_tables()
    assert entries() == before
    assert set(DatasetCatalog.list()) == datasets


@pytest.mark.parametrize("plugin", plugins(), ids=lambda plugin: plugin.__name__)
def test_a_plugin_file_registers_something(plugin):
    name = plugin.__name__.removeprefix("mask_former.")
    registered = [key for key, obj in entries().items() if obj.__module__ == plugin.__name__]
    assert bool(registered) != (name in HELPERS), (
        f"{name} registers {registered or 'nothing'}: register its plug-in, or add it to HELPERS"
    )


def test_helpers_exist():
    assert {plugin.__name__.removeprefix("mask_former.") for plugin in plugins()} >= HELPERS


def test_the_keys_of_a_plugin_are_in_the_config():
    assert any(hasattr(plugin, "add_config") for plugin in plugins())
    cfg = get_mask_former_cfg()
    assert cfg.MODEL.TIMM.OUT_FEATURES == ["res2", "res3", "res4", "res5"]
    assert cfg.MODEL.TIMM.FREEZE_AT == 0
