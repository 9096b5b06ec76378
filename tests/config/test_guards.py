"""Mistakes are caught with a message that helps, the page of messages is kept, and what is no
mistake is let pass."""

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
WHOLE = sorted(f for f in CONFIGS.rglob("*.yaml") if not f.name.startswith("Base-"))


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
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


def said(mistake, folder):
    """The error's message, or the warnings."""
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
    message = said(mistake, tmp_path)
    assert re.fullmatch(pattern, message, re.DOTALL), message


def test_there_are_at_least_30_each_of_its_own_name():
    assert len(MISTAKES) == sum(len(section) for section in SECTIONS.values()) >= 30


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run python -m tests.helpers.planted_mistakes"
    )


# What is no mistake


@pytest.mark.parametrize("file", WHOLE, ids=name_below_configs)
def test_every_config_passes_and_fits_its_datasets(file):
    cfg = resolve(file)
    with p.warnings() as found:
        validate(cfg)
        check_classes(cfg, (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    assert found == []
    if cfg.DATASETS.TRAIN:
        check_registered(cfg)


OWN = [file for file in WHOLE if name_below_configs(file) not in PUBLISHED]


@pytest.mark.parametrize("file", OWN, ids=name_below_configs)
def test_our_own_configs_drop_masks_that_the_crop_has_emptied(file):
    assert resolve(file).INPUT.MIN_MASK_AREA >= 1


def test_keys_of_box_heads_are_let_pass_where_they_are_read(cfg):
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.SEM_SEG_HEAD.NAME = "PanopticFPN", "SemSegFPNHead"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    validate(cfg)
    MetadataCatalog.get(p.DATASET).set(stuff_classes=["a"], thing_classes=["b"])
    check_classes(cfg, [p.DATASET])


def test_metadata_without_classes_is_let_pass(tmp_path):
    cfg = p.config(tmp_path)
    check_classes(cfg, ["planted_and_never_described"])
    MetadataCatalog.pop("planted_and_never_described")


@pytest.mark.parametrize("rate, optimizer", [(1e-3, "ADAMW"), (0.1, "SGD")])
def test_a_usual_rate_is_no_warning(tmp_path, rate, optimizer):
    with p.warnings() as found:
        p.config(tmp_path, "SOLVER.BASE_LR", rate, "SOLVER.OPTIMIZER", optimizer)
    assert found == []


def test_evaluation_alone_looks_at_the_classes_too(tmp_path):
    cfg = p.config(tmp_path, "DATASETS.TEST", "('camvid_sem_seg_val',)")
    with pytest.raises(ValueError, match=r"NUM_CLASSES is 4, but .* has 11 stuff_classes"):
        p.Trainer.test(cfg, torch.nn.Identity())


# Numbers that are not finite


def broken_batch():
    outputs, targets = random_batch(layers=1, counts=(3, 0, 4), queries=6)
    outputs["pred_masks"][2, 1, 0] = float("nan")
    outputs["pred_masks"][0, 4, 0] = float("inf")
    return outputs, targets


def test_the_error_names_image_layer_and_term():
    outputs, targets = random_batch(layers=1, counts=(3, 4))
    broken = {name: value.clone() for name, value in outputs.items() if name != "aux_outputs"}
    broken["pred_logits"][1, 2] = float("nan")
    whole = {name: value for name, value in outputs.items() if name != "aux_outputs"}
    matcher = HungarianMatcher(0.0, 1.0, 1.0)  # 0 · NaN is NaN all the same
    with pytest.raises(NonFiniteError, match=r"layer 2 of 3: 4 of 24 .*\(terms: class\)") as caught:
        matcher.match_layers([whole, broken, whole], targets)
    assert caught.value.image == 1
    assert isinstance(caught.value, FloatingPointError) and isinstance(caught.value, ValueError)


def test_sanitized_costs_are_chosen_last_and_counted():
    outputs, targets = broken_batch()
    matcher = HungarianMatcher(1.0, 20.0, 1.0, on_nonfinite="sanitize")
    with p.warnings() as found:
        matches = matcher(outputs, targets)
    for image, query in ((0, 4), (2, 1)):
        # As if the broken query were not there.
        others = [index for index in range(6) if index != query]
        fewer = {
            name: outputs[name][image : image + 1, others] for name in ("pred_logits", "pred_masks")
        }
        (expected,) = HungarianMatcher(1.0, 20.0, 1.0)(fewer, targets[image : image + 1])
        assert pairs_of(matches[image]) == [(others[q], t) for q, t in pairs_of(expected)]
    assert matcher.num_sanitized == 3 + 4
    assert len(found) == 2 and "7 were replaced so far" in found[1]


def test_a_warning_of_mended_costs_comes_each_time_their_number_has_doubled():
    outputs, targets = broken_batch()
    matcher = HungarianMatcher(1.0, 20.0, 1.0, on_nonfinite="sanitize")
    with p.warnings() as found:
        for _ in range(100):
            matcher(outputs, targets)
    assert matcher.num_sanitized == 700 and len(found) == (700).bit_length() - 1


def test_finite_costs_are_matched_alike_whichever_way():
    outputs, targets = random_batch(layers=1)
    ways = [
        [pairs_of(match) for match in HungarianMatcher(on_nonfinite=way)(outputs, targets)]
        for way in ("raise", "sanitize")
    ]
    assert ways[0] == ways[1]


def test_the_key_reaches_the_matcher(tmp_path):
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


def test_the_weights_stay_as_they_were_and_the_batch_is_kept(tmp_path):
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


# More targets than queries, and none


def test_more_targets_than_queries_are_told_of_once(tmp_path):
    with p.warnings() as found:
        p.train(tmp_path, [p.example(9)], [p.example(7)], [p.example(6)])
    assert len(found) == 1 and "has 9 targets" in found[0]


def test_as_many_targets_as_queries_are_no_warning(tmp_path):
    with p.warnings() as found:
        p.train(tmp_path, [p.example(6)])
    assert found == []


def test_a_batch_without_targets_teaches_no_object(tmp_path):
    model = p.model(tmp_path).train()
    rate = torch.optim.SGD(model.parameters(), lr=0.05)
    batch = [p.example(0), p.example(0)]
    first = model(batch)
    for _ in range(5):
        rate.zero_grad()
        losses = model(batch)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate.step()
    assert losses["loss_ce"] < first["loss_ce"]
    assert losses["loss_mask"] == losses["loss_dice"] == 0
