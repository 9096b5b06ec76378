"""Mistakes get a helpful message, the page of messages is up to date, and valid input passes."""

from __future__ import annotations

import gzip
import json
import re

import pytest
import torch
from detectron2.data import MetadataCatalog

from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.validation import validate
from mask_former.engine.dataset_checks import check_classes, check_registered
from mask_former.engine.nonfinite import check_losses, load_batch
from mask_former.losses import HungarianMatcher, NonFiniteError
from tests.helpers import planting as p
from tests.helpers.core_cases import pairs_of, random_batch
from tests.helpers.paths import ROOT
from tests.helpers.planted_mistakes import MISTAKES, PAGE, SECTIONS, page

CONFIGS = ROOT / "configs"
PUBLISHED = json.loads(
    gzip.decompress((CONFIGS.parent / "tests/golden/published_configs.json.gz").read_bytes())
)["configs"]
COMPLETE = sorted(f for f in CONFIGS.rglob("*.yaml") if not f.name.startswith("Base-"))


@pytest.fixture(autouse=True)
def clean_up_planted_state():
    p.forget()
    yield
    p.forget()


def resolve(file):
    cfg = get_mask_former_cfg()
    cfg.merge_from_file(str(file))
    return cfg


def name_below_configs(file):
    return str(file.relative_to(CONFIGS))


# The table of mistakes


def message_of(mistake, folder):
    """Plant the mistake; return the message of its error, or its warnings."""
    if mistake.error is None:
        with p.warnings() as found:
            mistake.plant(folder)
        return "\n".join(found)
    with pytest.raises(mistake.error) as caught:
        mistake.plant(folder)
    return str(caught.value.args[0])


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_its_message(name, tmp_path):
    mistake = MISTAKES[name]
    pattern = ".*".join(re.escape(part) for part in mistake.message.split("…"))
    message = message_of(mistake, tmp_path)
    assert re.fullmatch(pattern, message, re.DOTALL), message


def test_at_least_30_mistakes_have_distinct_names():
    assert len(MISTAKES) == sum(len(section) for section in SECTIONS.values()) >= 30


def test_the_documented_page_matches_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m tests.helpers.planted_mistakes"
    )


# Valid input


@pytest.mark.parametrize("file", COMPLETE, ids=name_below_configs)
def test_every_config_passes_and_fits_its_datasets(file):
    cfg = resolve(file)
    with p.warnings() as found:
        validate(cfg)
        check_classes(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    assert found == []
    if cfg.DATASETS.TRAIN:
        check_registered(cfg)


UNPUBLISHED = [file for file in COMPLETE if name_below_configs(file) not in PUBLISHED]


@pytest.mark.parametrize("file", UNPUBLISHED, ids=name_below_configs)
def test_unpublished_configs_drop_masks_emptied_by_the_crop(file):
    assert resolve(file).INPUT.MIN_MASK_AREA >= 1


def test_keys_of_box_heads_are_accepted_where_they_are_used(cfg):
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "PanopticFPN", "SemSegFPNHead"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    validate(cfg)
    MetadataCatalog.get(p.DATASET).set(stuff_classes=["a"], thing_classes=["b"])
    check_classes(cfg, [p.DATASET])


def test_metadata_without_classes_is_accepted(tmp_path):
    cfg = p.config(tmp_path)
    check_classes(cfg, ["planted_and_never_described"])
    MetadataCatalog.pop("planted_and_never_described")


@pytest.mark.parametrize("rate, optimizer", [(1e-3, "ADAMW"), (0.1, "SGD")])
def test_usual_learning_rates_give_no_warning(tmp_path, rate, optimizer):
    with p.warnings() as found:
        p.config(tmp_path, "SOLVER.BASE_LR", rate, "SOLVER.OPTIMIZER", optimizer)
    assert found == []


def test_evaluation_without_training_checks_the_classes_too(tmp_path):
    cfg = p.config(tmp_path, "DATASETS.TEST", "('camvid_sem_seg_val',)")
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 4, but .* has 11 stuff_classes"):
        p.Trainer.test(cfg, torch.nn.Identity())


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


def test_the_matcher_takes_on_nonfinite_from_the_config(tmp_path):
    key = "MODEL.MASK_FORMER.MATCHER.ON_NONFINITE"
    assert p.model(tmp_path).criterion.matcher.on_nonfinite == "raise"
    assert p.model(tmp_path, key, "sanitize").criterion.matcher.on_nonfinite == "sanitize"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_loss_that_is_not_finite_is_named_with_its_layer(value):
    losses = {"loss_ce": 1.0, "loss_ce_0": 2.0, "loss_ce_1": 1e30, "loss_sem_seg": 3.0}
    check_losses(losses)
    for name, where in (
        ("loss_ce_1", " (decoder layer 2 of 3)"),
        ("loss_ce", " (decoder layer 3 of 3)"),
        ("loss_sem_seg", ""),
    ):
        with pytest.raises(NonFiniteError) as caught:
            check_losses({**losses, name: value})
        assert str(caught.value) == f"The loss is not finite: {name}{where} is {value}."


def test_a_nonfinite_loss_keeps_the_weights_and_saves_the_batch(tmp_path):
    batch = [p.example(0, file_name="a.png"), p.example(0, file_name="b.png")]
    batch[0]["height"], batch[0]["image_id"] = 64, "a"
    loop = p.train_loop(tmp_path, batch)
    p.make_nan(loop.model.sem_seg_head.predictor.class_embed)
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    with pytest.raises(NonFiniteError, match=r"(?s)iteration 0.*Images: a.png, b.png"):
        loop.run_step()
    for name, value in loop.model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, equal_nan=True)
    kept = load_batch(tmp_path / "nonfinite_batch.pth")
    assert [example.keys() for example in kept] == [example.keys() for example in batch]
    for found, expected in zip(kept, batch, strict=True):
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["instances"].gt_masks, expected["instances"].gt_masks)
        assert found["instances"].image_size == expected["instances"].image_size
        assert found["file_name"] == expected["file_name"]
    assert kept[0]["height"] == 64 and kept[0]["image_id"] == "a"
    assert loop.model(kept).keys() == loop.model(batch).keys()


def test_losses_are_read_from_a_gpu_once_a_step(tmp_path, monkeypatch):
    reads = []
    cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: reads.append(self.shape) or cpu(self))
    loop = p.train(tmp_path, [p.example()])
    # The matcher's costs (with the labels), and the three losses.
    assert reads == [torch.Size([2 + 6 * 2]), torch.Size([3])]
    assert loop.model.training


# More targets than queries, and no targets


def test_more_targets_than_queries_are_warned_about_once(tmp_path):
    with p.warnings() as found:
        p.train(tmp_path, [p.example(9)], [p.example(7)], [p.example(6)])
    assert len(found) == 1 and "has 9 targets" in found[0]


def test_as_many_targets_as_queries_give_no_warning(tmp_path):
    with p.warnings() as found:
        p.train(tmp_path, [p.example(6)])
    assert found == []


def test_training_on_batches_without_targets_reduces_the_class_loss(tmp_path):
    model = p.model(tmp_path).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batch = [p.example(0), p.example(0)]
    first = model(batch)
    for _ in range(5):
        optimizer.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert losses["loss_ce"] < first["loss_ce"]
    assert losses["loss_mask"] == losses["loss_dice"] == 0
