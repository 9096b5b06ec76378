"""Comparison of a file's weights with a model's: counts, names, and a minimum share that fits."""

import pytest
import torch

from mask_former.checkpoint.weights_fit import compare, grouped


def zeros(**shapes):
    return {name.replace("__", "."): torch.zeros(shape) for name, shape in shapes.items()}


MODEL = zeros(backbone__a=(2,), backbone__b=(3,), head__class=(4, 5), head__mask=(6,), extra=(1,))


def test_every_tensor_is_loaded_reshaped_missing_or_unused():
    fit = compare(zeros(backbone__a=(2,), head__class=(9, 5), fc__weight=(1,)), MODEL)
    assert fit.loaded == ["backbone.a"]
    assert fit.reshaped == {"head.class": ((9, 5), (4, 5))}
    assert fit.missing == ["backbone.b", "head.mask", "extra"]
    assert fit.unused == ["fc.weight"]
    assert not fit.is_complete and compare(MODEL, MODEL).is_complete


def test_the_summary_lists_the_outcome_of_every_tensor():
    file = zeros(backbone__a=(2,), backbone__b=(3,), head__class=(9, 5), fc__w=(1,), fc__b=(1,))
    assert compare(file, MODEL).summary("x.pth", ["A hint."]).splitlines() == [
        "x.pth: loaded 2 of the model's 5 tensors.",
        "  other shape in the file, not loaded:",
        "    head.class: (9, 5), the model has (4, 5)",
        "  missing in the file, unchanged:",
        "    head.mask",
        "    extra",
        "  not in the model, unused:",
        "    fc.* (2)",
        "  A hint.",
    ]


def test_a_complete_fit_is_one_line():
    assert compare(MODEL, MODEL).summary("x.pth") == "x.pth: loaded 5 of the model's 5 tensors."


def test_long_lists_are_shortened():
    file = {f"w{i}": torch.zeros(1) for i in range(100)}
    lines = compare({**MODEL, **file}, MODEL).summary("x").splitlines()
    assert len(lines) < 20 and lines[-1] == "    … and 88 more"


def test_names_are_grouped_by_module_unless_other_parts_of_it_fit():
    names = ["head.a.w", "head.a.b", "body.new.w", "body.old.extra", "single"]
    assert grouped(names, ["body.old.w"]) == [
        "head.* (2)",
        "body.new.* (1)",
        "body.old.extra",
        "single",
    ]


@pytest.mark.parametrize("unused, fits", [(0, True), (1, True), (2, True), (3, False), (50, False)])
def test_at_least_half_of_a_file_must_fit(unused, fits):
    file = zeros(backbone__a=(2,), backbone__b=(3,))
    fit = compare({**file, **{f"foreign{i}": torch.zeros(1) for i in range(unused)}}, MODEL)
    if fits:
        fit.check_share("x.pth")
        return
    with pytest.raises(ValueError, match=rf"x\.pth does not fit .* 2 of its {2 + unused} tensors"):
        fit.check_share("x.pth")


def test_tensors_of_another_shape_do_not_fit():
    file = {name: torch.zeros(7, 7) for name in MODEL}
    with pytest.raises(ValueError, match=r"0 of its 5 .*backbone\.a \(7, 7\), not \(2,\), .*size"):
        compare(file, MODEL).check_share("x.pth")


@pytest.mark.parametrize(
    "name, advice",
    [
        ("layer1.0.conv1.weight", "tools/convert_torchvision_to_d2.py"),
        ("layers.0.blocks.0.attn.qkv.weight", "tools/convert_pretrained_swin_model_to_d2.py"),
        ("model.pixel_level_module.encoder.weight", "tools/convert_hf_maskformer.py"),
        ("sem_seg_head.predictor.query_feat.weight", "one in configs/mask2former"),
        ("sem_seg_head.predictor.transformer.decoder.norm.bias", "one in configs/coco-panoptic"),
        ("a", "matching_heuristics=True"),
        ("transformer.weight", "to another model"),
    ],
)
def test_the_error_suggests_a_fix_for_the_likely_reason(name, advice):
    with pytest.raises(ValueError, match=advice.replace("?", r"\?")):
        compare({name: torch.zeros(2)}, MODEL).check_share("x.pth")


def test_an_empty_file_does_not_fit():
    with pytest.raises(ValueError, match="0 of its 0 tensors"):
        compare({}, MODEL).check_share("x.pth")
