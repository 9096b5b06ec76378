"""The criterion reproduces the published losses, gradients and matches, and keeps its contract."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mask_former import losses
from mask_former.losses import CrossEntropyTerm, PointRule
from tests.helpers import references
from tests.helpers.core_cases import (
    MASK2FORMER_BATCH,
    MASK2FORMER_WEIGHTS,
    NO_OBJECT_WEIGHT,
    WEIGHTS,
    build_criterion,
    layers_of,
    mask2former_criterion,
    pairs_of,
    random_batch,
    run_criterion,
    weighted_total,
)
from tests.helpers.golden_cases import load_case, unpack_masks

# The published figures


def golden_inputs(facts, arrays):
    logits, masks = (torch.from_numpy(arrays[name]) for name in ("pred_logits", "pred_masks"))
    layers = [
        {"pred_logits": of_class, "pred_masks": of_mask}
        for of_class, of_mask in zip(logits, masks, strict=True)
    ]
    targets = [
        {
            "labels": torch.from_numpy(arrays[f"labels{i}"]),
            "masks": unpack_masks(arrays[f"masks{i}"], [count, *facts["full_size"]]),
        }
        for i, count in enumerate(facts["counts"])
    ]
    return {**layers[-1], "aux_outputs": layers[:-1]}, targets


@pytest.fixture(scope="module", params=["seeded", "golden"])
def case(request):
    """Found and expected losses, matches and gradients, for seeded and for golden inputs."""
    if request.param == "seeded":
        expected, gradients = load_case("criterion")
        criterion, (outputs, targets) = build_criterion(), random_batch()
    else:
        folder = request.getfixturevalue("shared_dir") / "golden"
        expected, gradients = load_case("criterion", folder)
        criterion = build_criterion(expected["num_classes"], expected["no_object_weight"])
        outputs, targets = golden_inputs(expected, gradients)
    found = run_criterion(criterion, outputs, targets)
    return SimpleNamespace(found=found, expected=expected, gradients=gradients)


def test_losses_match_the_published_ones(case):
    assert case.found["losses"] == pytest.approx(case.expected["losses"], rel=1e-4)
    total = case.expected["total_weighted"]
    assert case.found["total_weighted"] == pytest.approx(total, rel=1e-4)


def test_matches_equal_the_published_ones(case):
    assert case.found["matches_per_layer"] == case.expected["matches_per_layer"]


def test_gradients_match_the_published_ones(case):
    found = {
        "grad_logits": case.found["grad_logits"],
        "grad_masks": case.found["grad_masks"],
        "grad_masks_every3": case.found["grad_masks"][..., ::3, ::3, ::3],
    }
    names = [name for name in found if name in case.gradients]
    assert len(names) == 2
    for name in names:
        expected = case.gradients[name]
        # A mask's gradient is small everywhere, so the tolerance scales with its maximum.
        atol = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=atol)


@pytest.fixture(scope="module", params=["carried", "golden"])
def mask2former_case(request):
    """Found and expected figures with Mask2Former's terms, at a grid of points."""
    if request.param == "carried":
        expected, gradients = load_case("mask2former_criterion")
        outputs, targets = random_batch(**MASK2FORMER_BATCH)
    else:
        folder = request.getfixturevalue("shared_dir") / "golden" / "mask2former"
        expected, gradients = load_case("criterion", folder)
        outputs, targets = golden_inputs(expected, gradients)
    criterion = mask2former_criterion(outputs["pred_logits"].shape[-1] - 1)
    found = run_criterion(criterion, outputs, targets, MASK2FORMER_WEIGHTS)
    return SimpleNamespace(found=found, expected=expected, gradients=gradients)


def test_mask2formers_losses_and_matches_equal_the_published_ones(mask2former_case):
    found, expected = mask2former_case.found, mask2former_case.expected
    assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
    assert found["matches_per_layer"] == expected["matches_per_layer"]


def test_mask2formers_gradients_equal_the_published_ones(mask2former_case):
    found, expected = mask2former_case.found, mask2former_case.gradients
    every3 = found["grad_masks"][..., ::3, ::3, ::3]
    np.testing.assert_allclose(found["grad_logits"], expected["grad_logits"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(every3, expected["grad_masks_every3"], rtol=1e-4, atol=1e-6)


# The formulas


@pytest.mark.parametrize("seed, counts", [(0, (3, 0, 7)), (1, (0, 0)), (2, (1, 6))], ids=str)
def test_losses_and_gradients_match_the_reference_loops(seed, counts):
    outputs, targets = random_batch(seed=seed, layers=2, counts=counts, size=(7, 9))
    found = run_criterion(build_criterion(), outputs, targets)
    layers = [
        {name: value.double().requires_grad_() for name, value in layer.items()}
        for layer in layers_of(outputs)
    ]
    matches = [references.match(layer, targets, tuple(WEIGHTS.values())) for layer in layers]
    losses = references.criterion(layers, targets, matches, NO_OBJECT_WEIGHT)
    assert found["losses"] == pytest.approx({k: v.item() for k, v in losses.items()}, rel=1e-5)
    weighted_total(losses).backward()
    for index, layer in enumerate(layers):
        for name, gradient in (("pred_logits", "grad_logits"), ("pred_masks", "grad_masks")):
            expected = layer[name].grad
            if expected is None:  # without a matched pair there is no mask loss
                expected = torch.zeros_like(layer[name])
            np.testing.assert_allclose(found[gradient][index], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0, 3.0])
def test_the_no_object_class_has_the_given_weight(weight):
    outputs, targets = random_batch(seed=4, layers=1, counts=(2, 3))
    criterion = build_criterion(no_object_weight=weight)
    matches = [[pairs_of(match) for match in criterion.matcher(outputs, targets)]]
    expected = references.criterion(layers_of(outputs), targets, matches, weight)["loss_ce"]
    assert criterion(outputs, targets)["loss_ce"].item() == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_the_last_layer_has_the_plain_names_and_earlier_ones_are_numbered(layers):
    outputs, targets = random_batch(layers=layers)
    suffixes = ["", *(f"_{index}" for index in range(layers - 1))]
    losses = build_criterion()(outputs, targets)
    assert set(losses) == {name + suffix for name in WEIGHTS for suffix in suffixes}
    for suffix, layer in zip([*suffixes[1:], ""], layers_of(outputs), strict=True):
        alone = build_criterion()(layer, targets)
        for name in WEIGHTS:
            assert losses[name + suffix].item() == pytest.approx(alone[name].item(), rel=1e-6)


# Properties


def test_the_order_of_the_images_is_irrelevant():
    outputs, targets = random_batch(seed=6, counts=(3, 0, 7, 1))
    order = [2, 0, 3, 1]
    layers = [{k: v[order] for k, v in layer.items()} for layer in layers_of(outputs)]
    permuted = {**layers[-1], "aux_outputs": layers[:-1]}
    criterion = build_criterion()
    found = criterion(permuted, [targets[i] for i in order])
    for name, value in criterion(outputs, targets).items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name


@pytest.mark.parametrize("counts", [(3, 0, 7, 1), (2, 2)], ids=str)  # 7: more than queries
def test_the_losses_of_the_images_of_a_batch_add_up_to_those_of_the_batch(counts):
    outputs, targets = random_batch(counts=counts)
    criterion = build_criterion()
    whole = criterion(outputs, targets)
    total = dict.fromkeys(whole, 0.0)
    for image, target in enumerate(targets):
        part = [{k: v[image : image + 1] for k, v in at.items()} for at in layers_of(outputs)]
        outputs_of_part = {**part[-1], "aux_outputs": part[:-1]}
        found = criterion(outputs_of_part, [target], batch_counts=counts)
        total = {name: total[name] + found[name].item() for name in whole}
    assert total == pytest.approx({name: value.item() for name, value in whole.items()}, rel=1e-5)


def test_the_order_of_the_targets_is_irrelevant():
    outputs, targets = random_batch(seed=7, counts=(4, 4))
    order = torch.tensor([2, 0, 3, 1])
    permuted = [{name: value[order] for name, value in target.items()} for target in targets]
    criterion = build_criterion()
    found = criterion(outputs, permuted)
    for name, value in criterion(outputs, targets).items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name


def test_a_batch_without_targets_has_finite_losses_and_every_gradient():
    outputs, targets = random_batch(counts=(0, 0))
    layers = layers_of(outputs)
    for layer in layers:
        for value in layer.values():
            value.requires_grad_()
    losses = build_criterion()({**layers[-1], "aux_outputs": layers[:-1]}, targets)
    for name, value in losses.items():
        assert value.isfinite()
        assert name.startswith("loss_ce") or value.item() == 0.0, name
    weighted_total(losses).backward()
    for layer in layers:
        assert (layer["pred_logits"].grad != 0).all()
        assert (layer["pred_masks"].grad == 0).all()  # 0, not None: DDP waits for every gradient


def test_without_targets_and_with_no_object_weight_0_the_loss_is_0():
    outputs, targets = random_batch(counts=(0, 0))
    found = run_criterion(build_criterion(no_object_weight=0.0), outputs, targets)
    assert set(found["losses"].values()) == {0.0}
    assert (found["grad_logits"] == 0).all() and (found["grad_masks"] == 0).all()


def test_confident_predictions_have_finite_losses_and_gradients():
    outputs, targets = random_batch(counts=(3, 0, 7))
    extreme = [{k: 1e4 * v.sign() for k, v in layer.items()} for layer in layers_of(outputs)]
    found = run_criterion(build_criterion(), {**extreme[-1], "aux_outputs": extreme[:-1]}, targets)
    assert all(math.isfinite(value) for value in found["losses"].values())
    assert np.isfinite(found["grad_logits"]).all() and np.isfinite(found["grad_masks"]).all()


def test_losses_under_autocast_equal_those_in_full_precision():
    outputs, targets = random_batch(seed=8)
    layers = [
        {name: value.bfloat16() for name, value in layer.items()} for layer in layers_of(outputs)
    ]
    rounded = [{name: value.float() for name, value in layer.items()} for layer in layers]
    criterion = build_criterion()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets)
    expected = criterion({**rounded[-1], "aux_outputs": rounded[:-1]}, targets)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert found[name].item() == pytest.approx(value.item(), rel=1e-6), name


@pytest.mark.parametrize("point_rule", [None, PointRule(50)], ids=["dense", "points"])
def test_gradients_under_autocast_equal_those_in_full_precision(point_rule):
    gradients = []
    criterion = build_criterion()
    criterion.point_rule = point_rule
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            gradients.append(run_criterion(criterion, *random_batch(seed=8))["grad_masks"])
    np.testing.assert_allclose(*gradients, rtol=1e-6)


def test_the_class_weights_are_a_buffer_with_the_published_name():
    (name, weight), *others = build_criterion(classes=4).state_dict().items()
    assert name == "empty_weight" and not others
    assert weight.tolist() == pytest.approx([1, 1, 1, 1, NO_OBJECT_WEIGHT])


# Invalid pixels


def partly_valid_case(*, point_rule=None):
    """Return a criterion, and outputs and targets of two images.

    The right third of the first image is invalid, nothing of the second."""
    outputs, targets = random_batch(seed=9, counts=(3, 5), grid=(6, 9), size=(24, 36))
    for target in targets:
        target["valid"] = torch.ones(24, 36, dtype=torch.bool)
    targets[0]["valid"][:, 24:] = False
    criterion = build_criterion()
    criterion.point_rule = criterion.matcher.point_rule = point_rule
    return criterion, outputs, targets


@pytest.mark.parametrize("point_rule", [None, PointRule(200)], ids=["dense", "points"])
def test_predictions_and_targets_at_invalid_pixels_change_nothing(point_rule):
    criterion, outputs, targets = partly_valid_case(point_rule=point_rule)
    torch.manual_seed(0)
    before = run_criterion(criterion, outputs, targets)
    for layer in layers_of(outputs):  # column 6 still affects pixels 22 and 23
        layer["pred_masks"][0, ..., 7:] += 9 * torch.randn(6, 6, 2)
    targets[0]["masks"][:, :, 24:] ^= True
    torch.manual_seed(0)
    after = run_criterion(criterion, outputs, targets)
    assert after["losses"] == before["losses"]
    assert after["matches_per_layer"] == before["matches_per_layer"]
    assert np.array_equal(after["grad_masks"], before["grad_masks"])
    assert (after["grad_masks"][:, 0, ..., 7:] == 0).all()
    assert (after["grad_masks"][:, 1, ..., 7:] != 0).any()


@pytest.mark.parametrize("point_rule", [None, PointRule(200)], ids=["dense", "points"])
def test_a_map_that_is_valid_everywhere_has_no_effect(point_rule):
    criterion, outputs, targets = partly_valid_case(point_rule=point_rule)
    targets[0]["valid"][:] = True
    torch.manual_seed(0)
    with_map = run_criterion(criterion, outputs, targets)
    for target in targets:
        del target["valid"]
    torch.manual_seed(0)
    plain = run_criterion(criterion, outputs, targets)
    assert with_map["losses"] == pytest.approx(plain["losses"], rel=1e-6)
    assert with_map["matches_per_layer"] == plain["matches_per_layer"]
    np.testing.assert_allclose(with_map["grad_masks"], plain["grad_masks"], rtol=1e-5, atol=1e-9)


def test_losses_of_an_image_with_an_invalid_part_equal_those_of_the_rest():
    # The last valid column of cells is repeated, so that upsampling reads nothing beyond it.
    criterion, outputs, targets = partly_valid_case()
    for layer in layers_of(outputs):
        layer["pred_masks"][0, ..., 6:] = layer["pred_masks"][0, ..., 5:6]
    rest = [
        {k: v[:1, ..., :6] if k == "pred_masks" else v[:1] for k, v in layer.items()}
        for layer in layers_of(outputs)
    ]
    whole = [{k: v[:1] for k, v in layer.items()} for layer in layers_of(outputs)]
    cut = {"labels": targets[0]["labels"], "masks": targets[0]["masks"][..., :24]}
    found = criterion({**whole[-1], "aux_outputs": whole[:-1]}, targets[:1])
    expected = criterion({**rest[-1], "aux_outputs": rest[:-1]}, [cut])
    for name, value in expected.items():
        assert found[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("which", [0, 1])
def test_either_all_targets_have_a_valid_map_or_none(which):
    criterion, outputs, targets = partly_valid_case()
    del targets[which]["valid"]
    with pytest.raises(ValueError, match=rf"Target {which} has no 'valid' map, but others"):
        criterion(outputs, targets)


def test_a_valid_map_of_another_size_is_an_error_that_names_both_sizes():
    criterion, outputs, targets = partly_valid_case()
    targets[1]["valid"] = targets[1]["valid"][:, 1:]
    with pytest.raises(ValueError, match=r"'valid' map of target 1 is \(24, 35\), .*\(24, 36\)"):
        criterion(outputs, targets)


# The number of targets


@pytest.mark.parametrize("counts, expected", [((0, 0), 1), ((1, 0), 1), ((3, 0, 9), 12)])
def test_mask_losses_are_divided_by_the_number_of_targets_at_least_1(counts, expected):
    assert build_criterion()._average_num_targets(counts).item() == expected


def average_on_rank(rank, counts, folder):
    """Run one of the processes below: write its average to a file named by its rank."""
    torch.set_num_threads(1)  # torch's thread pool does not survive a fork
    dist.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=len(counts))
    average = build_criterion()._average_num_targets(counts[rank])
    (folder / f"{rank}").write_text(str(average.item()))
    dist.destroy_process_group()


@pytest.mark.subprocess
@pytest.mark.parametrize("counts, expected", [([(3, 2), (0, 1)], 3.0)])
def test_the_number_of_targets_is_averaged_over_the_ranks(counts, expected, tmp_path):
    # Forked, because a spawned process would spend seconds on its imports.
    mp.start_processes(average_on_rank, (counts, tmp_path), len(counts), start_method="fork")
    assert [float((tmp_path / f"{rank}").read_text()) for rank in range(2)] == [expected] * 2


# Errors


def test_a_missing_target_is_an_error_with_both_counts():
    outputs, targets = random_batch(counts=(1, 2, 3))
    with pytest.raises(ValueError, match="outputs are for 3 images, but there are targets for 2"):
        build_criterion()(outputs, targets[:2])


def test_target_masks_of_different_sizes_are_an_error_that_names_them():
    outputs, targets = random_batch(counts=(1, 2))
    targets[1]["masks"] = targets[1]["masks"][..., :-1]
    with pytest.raises(ValueError, match=r"must have one size, got \[\(12, 16\), \(12, 17\)\]"):
        build_criterion()(outputs, targets)


def test_a_differing_number_of_classes_is_an_error_that_names_the_key():
    outputs, targets = random_batch(classes=5)
    text = "predictor has 5 classes and the criterion 7.*MODEL.SEM_SEG_HEAD.NUM_CLASSES"
    with pytest.raises(ValueError, match=text):
        build_criterion(classes=7)(outputs, targets)


@pytest.mark.parametrize("label", [-1, 5, 255])
def test_a_label_that_is_not_a_class_is_an_error_that_names_it(label):
    outputs, targets = random_batch(counts=(1, 3), classes=5)
    targets[1]["labels"][1] = label
    with pytest.raises(ValueError, match=rf"image 1 of the batch have .*\[{label}\], but .* 0 … 4"):
        build_criterion()(outputs, targets)


# From a config


def test_an_unknown_loss_is_an_error_that_lists_the_known_ones(cfg):
    cfg.MODEL.MASK_FORMER.LOSSES = ["labels", "boxes"]
    with pytest.raises(KeyError, match=r"MODEL\.MASK_FORMER\.LOSSES is 'boxes'.*'labels', 'masks'"):
        losses.build_criterion(cfg)


@pytest.mark.parametrize(
    "key, known", [("CRITERION_NAME", "SetCriterion"), ("MATCHER.NAME", "HungarianMatcher")]
)
def test_an_unknown_criterion_or_matcher_is_an_error_that_lists_the_known_ones(cfg, key, known):
    cfg.merge_from_list([f"MODEL.MASK_FORMER.{key}", "Mine"])
    with pytest.raises(KeyError, match=rf"{key} is 'Mine', .*'{known}'"):
        losses.build_criterion(cfg)


def test_matcher_and_losses_share_one_mask_term_and_one_point_rule(cfg):
    cfg.MODEL.MASK_FORMER.MASK_TERM = "cross_entropy"
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 7
    criterion = losses.build_criterion(cfg)
    assert criterion.mask_term is criterion.matcher.mask_term
    assert criterion.mask_term == CrossEntropyTerm()
    assert criterion.point_rule is criterion.matcher.point_rule
    assert criterion.point_rule == PointRule(7)


def test_loss_weights_come_from_the_keys_of_the_configured_losses(cfg):
    weights = {"CLASS_WEIGHT": 2.0, "MASK_WEIGHT": 5.0, "DICE_WEIGHT": 6.0}
    cfg.MODEL.MASK_FORMER.update(weights)
    expected = {"loss_ce": 2.0, "loss_mask": 5.0, "loss_dice": 6.0}
    assert losses.build_criterion(cfg).loss_weights == expected
    cfg.MODEL.MASK_FORMER.LOSSES = ["labels"]
    assert losses.build_criterion(cfg).loss_weights == {"loss_ce": 2.0}


@pytest.mark.parametrize(
    "options, message",
    [
        (["MASK_TERM", "iou"], "MASK_TERM is 'iou', expected one of .*'focal', 'cross_entropy'"),
        (["POINT_TARGETS", "bilinear"], "MASK_TERM is 'focal', which needs targets of 0 and 1"),
        (["POINT_PADDING", "mirror"], "POINT_PADDING is 'mirror', expected one of"),
    ],
)
def test_unknown_or_incompatible_terms_and_rules_are_errors_that_name_the_key(
    cfg, options, message
):
    cfg.MODEL.MASK_FORMER.TRAIN_NUM_POINTS = 7
    cfg.MODEL.MASK_FORMER.update(dict([options]))
    with pytest.raises(ValueError, match=message):
        losses.build_criterion(cfg)


# Mask2Former's terms and points


def test_cross_entropy_losses_match_the_reference_loops():
    outputs, targets = random_batch(layers=1, counts=(2, 0, 3), grid=(4, 5), size=(8, 10))
    criterion = build_criterion(mask_term=CrossEntropyTerm())
    found = criterion(outputs, targets)
    matches = criterion.matcher(outputs, targets)
    total = 0.0
    for image, (queries, numbers) in enumerate(matches):
        masks = references.upsample(outputs["pred_masks"][image].double(), (8, 10))
        for query, number in zip(queries, numbers, strict=True):
            target = targets[image]["masks"][number]
            total += float(references.cross_entropy(masks[query], target))
    assert found["loss_mask"].item() == pytest.approx(total / 5, rel=1e-5)


def test_fixed_points_replace_random_ones_in_losses_and_matching():
    outputs, targets = random_batch(seed=1, counts=(3, 0, 7))
    rule = PointRule(50, padding="zeros", targets="bilinear")
    criterion = build_criterion(mask_term=CrossEntropyTerm(), point_rule=rule)
    points = torch.rand(20, 2, generator=torch.Generator().manual_seed(0))
    criterion.fixed_points = criterion.matcher.fixed_points = points
    first, second = (criterion(outputs, targets) for _ in range(2))
    assert first == second, "fixed points must leave nothing random"
    (layer,) = layers_of(outputs)[-1:]
    match = criterion.matcher(layer, targets)
    total = 0.0
    for image, (queries, numbers) in enumerate(match):
        logits = rule.read_logits(layer["pred_masks"][image][queries], points).double()
        shares = rule.mask_reader(targets[image]["masks"][numbers])(points).double()
        p = logits.sigmoid()
        total -= (shares * p.log() + (1 - shares) * (1 - p).log()).mean(1).sum().item()
    assert first["loss_mask"].item() == pytest.approx(total / 10, rel=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": torch.zeros(5, dtype=torch.int64)},
        {"labels": torch.zeros(2)},
        {"masks": torch.zeros(2, 8, 8, dtype=torch.uint8)},
        {"masks": torch.zeros(1, 2, 8, 8, dtype=torch.bool)},
    ],
)
def test_a_target_of_another_shape_or_type_is_refused_by_its_index(change):
    outputs, _ = random_batch()
    good = {
        "labels": torch.zeros(2, dtype=torch.int64),
        "masks": torch.zeros(2, 8, 8, dtype=torch.bool),
    }
    targets = [good] * (len(outputs["pred_logits"]) - 1)
    number = len(targets)
    with pytest.raises(ValueError, match=rf"Target {number} of the batch has labels of shape"):
        build_criterion()(outputs, [*targets, good | change])
