"""The matcher finds the cheapest assignment, and raises an error where none exists."""

import pytest
import torch

from mask_former.losses import HungarianMatcher, NonFiniteError
from mask_former.losses.matcher import resize_targets
from tests.helpers import planting as p
from tests.helpers import references
from tests.helpers.core_cases import WEIGHTS, layers_of, pairs_of, random_batch, random_masks

PUBLISHED = tuple(WEIGHTS.values())


@pytest.fixture(scope="module", params=range(4))
def batch(request):
    """Random outputs and targets, and for each image the terms of the cost of each pair."""
    outputs, targets = random_batch(seed=request.param, layers=1, counts=(3, 0, 7, 6), queries=6)
    predicted = zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True)
    return outputs, targets, [references.cost_terms(*of_image) for of_image in predicted]


@pytest.mark.parametrize(
    "weights", [PUBLISHED, (1, 0, 0), (0, 1, 0), (0, 0, 1), (2, 5, 5)], ids=str
)
def test_the_match_is_the_cheapest_of_all_assignments(weights, batch):
    outputs, targets, terms = batch
    matches = HungarianMatcher(*weights)(outputs, targets)
    for match, target, of_image in zip(matches, targets, terms, strict=True):
        cost = references.weighted_cost(of_image, weights)
        found = pairs_of(match)
        best = references.best_assignment(cost)
        assert len(found) == min(6, len(target["labels"]))
        # With the class cost alone, targets of the same class are interchangeable.
        totals = [sum(cost[q][t] for q, t in pairs) for pairs in (found, best)]
        assert totals[0] == pytest.approx(totals[1], abs=1e-6)
        if weights != (1, 0, 0):
            assert found == best


def test_cost_terms_have_weight_1_by_default():
    matcher = HungarianMatcher()
    assert (matcher.class_weight, matcher.mask_weight, matcher.dice_weight) == (1, 1, 1)


def test_a_match_is_a_pair_of_index_tensors_with_ascending_queries():
    outputs, targets = random_batch(layers=1, counts=(3, 0, 7), queries=6)
    for queries, numbers in HungarianMatcher(*PUBLISHED)(outputs, targets):
        assert queries.dtype == numbers.dtype == torch.int64
        assert queries.tolist() == sorted(set(queries.tolist()))
        assert len(set(numbers.tolist())) == len(numbers) == len(queries)


def test_matching_layers_together_equals_matching_each_alone():
    outputs, targets = random_batch(seed=5, layers=4, counts=(3, 0, 7))
    matcher = HungarianMatcher(*PUBLISHED)
    together = matcher.match_layers(layers_of(outputs), targets)
    alone = [matcher(layer, targets) for layer in layers_of(outputs)]
    assert [[pairs_of(match) for match in of_layer] for of_layer in together] == [
        [pairs_of(match) for match in of_layer] for of_layer in alone
    ]


@pytest.mark.parametrize("counts", [(3, 2), (7, 9)], ids=["fewer targets", "more targets"])
def test_permuting_queries_permutes_the_match(counts):
    outputs, targets = random_batch(seed=1, layers=1, counts=counts)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    permuted = {name: outputs[name][:, order] for name in ("pred_logits", "pred_masks")}
    matcher = HungarianMatcher(*PUBLISHED)
    for match, moved in zip(matcher(outputs, targets), matcher(permuted, targets), strict=True):
        assert sorted((int(order[q]), t) for q, t in pairs_of(moved)) == pairs_of(match)


@pytest.mark.parametrize("counts", [(4, 4), (8, 8)], ids=["fewer targets", "more targets"])
def test_permuting_targets_permutes_the_match(counts):
    outputs, targets = random_batch(seed=2, layers=1, counts=counts)
    order = torch.randperm(counts[0], generator=torch.Generator().manual_seed(0))
    permuted = [{name: value[order] for name, value in target.items()} for target in targets]
    matcher = HungarianMatcher(*PUBLISHED)
    for match, moved in zip(matcher(outputs, targets), matcher(outputs, permuted), strict=True):
        assert [(q, int(order[t])) for q, t in pairs_of(moved)] == pairs_of(match)


def test_matching_under_autocast_equals_matching_in_full_precision():
    # With many similar targets, costs rounded to bfloat16 would change some of the matches.
    outputs, targets = random_batch(seed=3, layers=1, counts=(30, 30), queries=30, classes=1)
    matcher = HungarianMatcher(*PUBLISHED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = matcher(outputs, targets)
    expected = [pairs_of(match) for match in matcher(outputs, targets)]
    assert [pairs_of(match) for match in cast] == expected


def test_matches_require_no_gradient():
    outputs, targets = random_batch(layers=1)
    for value in (outputs["pred_logits"], outputs["pred_masks"]):
        value.requires_grad_()
    for queries, numbers in HungarianMatcher(*PUBLISHED)(outputs, targets):
        assert not queries.requires_grad and not numbers.requires_grad


def test_confident_logits_can_be_matched():
    outputs, targets = random_batch(layers=1, counts=(3, 3))
    extreme = {name: 1e4 * outputs[name].sign() for name in ("pred_logits", "pred_masks")}
    assert [len(match[0]) for match in HungarianMatcher(*PUBLISHED)(extreme, targets)] == [3, 3]


@pytest.mark.parametrize("size, small", [((12, 20), (3, 5)), ((13, 17), (5, 7)), ((6, 6), (6, 6))])
def test_targets_are_downsampled_by_nearest_neighbour(size, small):
    masks = random_masks(4, size, seed=0) > 0
    found = resize_targets(masks, small)
    assert torch.equal(found, references.pick_nearest(masks, small))


def test_downsampling_no_targets_returns_an_empty_bool_tensor():
    found = resize_targets(torch.zeros(0, 8, 8, dtype=torch.bool), (2, 2))
    assert found.shape == (0, 2, 2) and found.dtype == torch.bool


@pytest.mark.parametrize("name", ["pred_logits", "pred_masks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_predictions_are_an_error_with_their_count(name, value):
    outputs, targets = random_batch(layers=1)
    outputs[name][2, 1, 0] = value
    with pytest.raises(ValueError, match=r"\d+ of 42 matching costs are NaN.*SOLVER\.BASE_LR"):
        HungarianMatcher(*PUBLISHED)(outputs, targets)


def test_weights_that_are_all_zero_are_refused():
    with pytest.raises(ValueError, match="All matching weights are 0"):
        HungarianMatcher(0, 0, 0)


def test_an_unknown_on_nonfinite_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"ON_NONFINITE is 'ignore'; it must be in \['raise', "):
        HungarianMatcher(on_nonfinite="ignore")


# Numbers that are not finite


def broken_batch():
    outputs, targets = random_batch(layers=1, counts=(3, 0, 4), queries=6)
    outputs["pred_masks"][2, 1, 0] = float("nan")
    outputs["pred_masks"][0, 4, 0] = float("inf")
    return outputs, targets


def test_the_error_for_nonfinite_costs_names_image_layer_and_term():
    outputs, targets = random_batch(layers=1, counts=(3, 4))
    broken = {name: value.clone() for name, value in outputs.items() if name != "aux_outputs"}
    broken["pred_logits"][1, 2] = float("nan")
    intact = {name: value for name, value in outputs.items() if name != "aux_outputs"}
    matcher = HungarianMatcher(0.0, 1.0, 1.0)  # weight 0 does not hide NaN
    with pytest.raises(NonFiniteError, match=r"layer 2 of 3: 4 of 24 .*\(terms: class\)") as caught:
        matcher.match_layers([intact, broken, intact], targets)
    assert caught.value.image == 1
    assert isinstance(caught.value, FloatingPointError) and isinstance(caught.value, ValueError)


def test_sanitized_costs_are_chosen_last_and_counted():
    outputs, targets = broken_batch()
    matcher = HungarianMatcher(1.0, 20.0, 1.0, on_nonfinite="sanitize")
    with p.warnings() as found:
        matches = matcher(outputs, targets)
    for image, query in ((0, 4), (2, 1)):
        # The match is the same as without the broken query.
        others = [index for index in range(6) if index != query]
        fewer = {
            name: outputs[name][image : image + 1, others] for name in ("pred_logits", "pred_masks")
        }
        (expected,) = HungarianMatcher(1.0, 20.0, 1.0)(fewer, targets[image : image + 1])
        assert pairs_of(matches[image]) == [(others[q], t) for q, t in pairs_of(expected)]
    assert matcher.num_sanitized == 3 + 4
    assert len(found) == 2 and "7 were replaced so far" in found[1]


def test_a_warning_of_sanitized_costs_is_logged_whenever_their_number_has_doubled():
    outputs, targets = broken_batch()
    matcher = HungarianMatcher(1.0, 20.0, 1.0, on_nonfinite="sanitize")
    with p.warnings() as found:
        for _ in range(100):
            matcher(outputs, targets)
    assert matcher.num_sanitized == 700 and len(found) == (700).bit_length() - 1


def test_on_nonfinite_does_not_change_the_matches_of_finite_costs():
    outputs, targets = random_batch(layers=1)
    ways = [
        [pairs_of(match) for match in HungarianMatcher(on_nonfinite=way)(outputs, targets)]
        for way in ("raise", "sanitize")
    ]
    assert ways[0] == ways[1]


@pytest.mark.usefixtures("restored_catalogs")
def test_the_matcher_takes_on_nonfinite_from_the_config(tmp_path):
    key = "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE"
    assert p.model(tmp_path).criterion.matcher.on_nonfinite == "raise"
    assert p.model(tmp_path, key, "sanitize").criterion.matcher.on_nonfinite == "sanitize"
