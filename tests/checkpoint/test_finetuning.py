"""Fine-tuning matches classes by name, keeps "no object", and cuts or repeats queries."""

import logging

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mask_former.checkpoint.checkpointer import Checkpointer
from mask_former.checkpoint.finetuning import Finetuning, match_classes
from mask_former.config.loading import load_cfg
from mask_former.structures import ParameterRows
from tests.helpers.tiny_model import write_tiny_model

PREDICTOR = "sem_seg_head.predictor."
CLASS = PREDICTOR + "class_embed."
QUERIES = PREDICTOR + "query_embed.weight"
OLD = ["sky", "road", "car", "bicyclist"]
NEW = ["dog", "Car ", "sky", "cat", "tree"]
SOURCES = [None, 2, 0, None, None]  # indices of NEW in OLD

MetadataCatalog.get("finetuning_old").stuff_classes = OLD
MetadataCatalog.get("finetuning_new").stuff_classes = NEW


ROWS = ParameterRows({CLASS + "weight": 1, CLASS + "bias": 1}, (QUERIES,))
"""The parameter rows of MaskFormer's head."""
PER_PIXEL_ROWS = ParameterRows({PREDICTOR + "weight": 0})
QUERY_ROWS = ParameterRows({**ROWS.classes, QUERIES: 0}, (QUERIES,))
"""The parameter rows of a head with one query per class."""


# Names


@pytest.mark.parametrize(
    "names, others, expected",
    [
        (NEW, OLD, SOURCES),
        (["wall"], ["sky", "wall, building"], [1]),
        (["Wall, brick"], ["wall"], [0]),
        (["building"], ["wall, building"], [None]),
        (["wall", "wall, brick"], ["wall, brick", "wall"], [1, 0]),  # exact matches win
        (["screen"], ["screen, projector", "screen, door"], [None]),  # ambiguous
        (["screen, a", "screen, b"], ["screen"], [None, None]),
        (["a"], ["a", "A"], [0]),
        ([], ["a"], []),
    ],
)
def test_classes_are_matched_by_name(names, others, expected):
    assert match_classes(names, others) == expected


# Weights


def weights_of(classes, queries, seed, *, no_object=1):
    generator = torch.Generator().manual_seed(seed)
    shapes = {CLASS + "weight": (classes + no_object, 3), CLASS + "bias": (classes + no_object,)}
    shapes[QUERIES] = (queries, 3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_rows_of_the_class_layer_follow_their_class(name):
    file, model = weights_of(4, 6, 0), weights_of(5, 6, 1)
    found = Finetuning(NEW).adapt(file, model, OLD, ROWS)[0][CLASS + name]
    old, new = file[CLASS + name], model[CLASS + name]
    expected = [new[0], old[2], old[0], new[3], new[4], old[4]]  # the last is "no object"
    assert torch.equal(found, torch.stack(expected))


@pytest.mark.parametrize("count", [1, 5, 6, 7, 14])
def test_queries_are_cut_or_repeated(count):
    file, model = weights_of(4, 6, 0), weights_of(4, count, 1)
    found = Finetuning(OLD).adapt(file, model, OLD, ROWS)[0][QUERIES]
    assert len(found) == count
    assert all(torch.equal(row, file[QUERIES][i % 6]) for i, row in enumerate(found))


def test_equal_classes_and_queries_are_unchanged():
    file = weights_of(4, 6, 0)
    found, notes = Finetuning(OLD).adapt(file, weights_of(4, 6, 1), OLD, ROWS)
    assert found.keys() == file.keys() and all(torch.equal(found[k], file[k]) for k in file)
    assert notes == ["classes: 4 of 4 carried over by name."]


def test_equally_many_classes_with_other_names_are_matched_by_name():
    file, model = weights_of(4, 6, 0), weights_of(4, 6, 1)
    found = Finetuning(["a", "road", "b", "c"]).adapt(file, model, OLD, ROWS)[0][CLASS + "bias"]
    old, new = file[CLASS + "bias"], model[CLASS + "bias"]
    assert found.tolist() == [new[0], old[1], new[2], new[3], old[4]]


@pytest.mark.parametrize("names, classes", [(None, NEW), (OLD, None)])
def test_without_names_only_no_object_is_carried_over(names, classes):
    file, model = weights_of(4, 6, 0), weights_of(5, 6, 1)
    found, notes = Finetuning(classes).adapt(file, model, names, ROWS)
    expected = [*model[CLASS + "bias"][:5], file[CLASS + "bias"][4]]
    assert found[CLASS + "bias"].tolist() == expected
    assert ("FINETUNE_CLASSES_FROM" in notes[0]) is (names is None)


def test_a_per_pixel_class_layer_has_no_row_for_no_object():
    name = PREDICTOR + "weight"
    file, model = {name: torch.randn(4, 3, 1, 1)}, {name: torch.randn(5, 3, 1, 1)}
    found = Finetuning(NEW).adapt(file, model, OLD, PER_PIXEL_ROWS)[0][name]
    rows = [model[name][0], file[name][2], file[name][0], model[name][3], model[name][4]]
    assert torch.equal(found, torch.stack(rows))


def test_with_one_query_per_class_queries_follow_their_class():
    file, model = {QUERIES: torch.randn(4, 3)}, {QUERIES: torch.randn(5, 3)}
    found = Finetuning(NEW).adapt(file, model, OLD, QUERY_ROWS)[0][QUERIES]
    rows = [model[QUERIES][0], file[QUERIES][2], file[QUERIES][0], *model[QUERIES][3:]]
    assert torch.equal(found, torch.stack(rows))


def test_queries_are_not_matched_by_class_if_only_the_file_classifies_masks():
    file, model = weights_of(4, 6, 0), {QUERIES: torch.randn(5, 3)}
    assert torch.equal(
        Finetuning(NEW).adapt(file, model, OLD, QUERY_ROWS)[0][QUERIES], file[QUERIES][:5]
    )


def test_inputs_are_not_modified():
    file, model = weights_of(4, 6, 0), weights_of(5, 3, 1)
    copies = [{name: value.clone() for name, value in side.items()} for side in (file, model)]
    Finetuning(NEW).adapt(file, model, OLD, ROWS)
    for side, copy in zip((file, model), copies, strict=True):
        assert all(torch.equal(side[name], copy[name]) for name in copy)


def test_a_dataset_names_the_classes_of_a_checkpoint_without_names():
    file, model = weights_of(4, 6, 0), weights_of(5, 6, 1)
    adapt = Finetuning(NEW, "finetuning_old").adapt
    by_dataset = adapt(file, model, None, ROWS)[0]
    by_file = adapt(file, model, OLD, ROWS)[0]
    assert all(torch.equal(by_dataset[name], by_file[name]) for name in file)
    # Names in the checkpoint take precedence.
    own = adapt(file, model, ["dog", "x", "y", "z"], ROWS)[0][CLASS + "bias"]
    assert own[0] == file[CLASS + "bias"][0] and own[1] == model[CLASS + "bias"][1]


def test_a_number_of_names_other_than_that_of_the_classes_is_refused():
    file, model = weights_of(4, 6, 0), weights_of(5, 6, 1)
    with pytest.raises(ValueError, match=r"'finetuning_new', which has no list of 4 classes"):
        Finetuning(NEW, "finetuning_new").adapt(file, model, None, ROWS)
    with pytest.raises(ValueError, match="has 4 classes but 3 class names"):
        Finetuning(NEW).adapt(file, model, OLD[:3], ROWS)


def test_the_error_for_an_unregistered_dataset_lists_similar_names(cfg):
    cfg.MODEL.MASK_FORMER.FINETUNE_CLASSES_FROM = "finetuning_odl"
    assert Finetuning.from_config(cfg) is None  # FINETUNE is off
    cfg.MODEL.MASK_FORMER.FINETUNE = True
    with pytest.raises(
        KeyError, match=r"'finetuning_odl', which is not .* similar: finetuning_old"
    ):
        Finetuning.from_config(cfg)


# Through the checkpointer


def write_with_names(folder, *, mask2former=False):
    """Write a config, and a checkpoint with 4 classes, their names and 6 queries."""
    config, weights = write_tiny_model(folder, mask2former=mask2former)
    content = torch.load(weights, weights_only=True)
    torch.save({**content, "class_names": OLD}, weights)
    return config, weights


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_with_names(tmp_path_factory.mktemp("model"))


def load(tiny, *opts, save_dir="", **options):
    """Load the checkpoint into a model of 5 classes and 9 queries; return it and its old state."""
    settings = {"SEM_SEG_HEAD.NUM_CLASSES": 5, "MASK_FORMER.NUM_OBJECT_QUERIES": 9}
    words = [str(word) for key, value in settings.items() for word in (f"MODEL.{key}", value)]
    cfg = load_cfg(str(tiny[0]), [*words, "DATASETS.TRAIN", "('finetuning_new',)", *opts])
    model = build_model(cfg)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    finetuning = Finetuning.from_config(cfg)
    checkpointer = Checkpointer(model, str(save_dir), finetuning=finetuning, **options)
    checkpointer.resume_or_load(str(tiny[1]), resume=bool(save_dir))
    return model, before


@pytest.mark.parametrize("query_names", [["query_embed"], ["query_embed", "query_feat"]])
def test_a_model_with_other_classes_and_queries_takes_over_all_that_fits(
    tmp_path, query_names, caplog
):
    tiny = write_with_names(tmp_path, mask2former="query_feat" in query_names)
    queries = [f"{PREDICTOR}{name}.weight" for name in query_names]
    with caplog.at_level(logging.INFO):
        model, before = load(tiny, "MODEL.MASK_FORMER.FINETUNE", "True")
    saved, found = torch.load(tiny[1], weights_only=True)["model"], model.state_dict()
    special = {CLASS + "weight", CLASS + "bias", *queries, "criterion.empty_weight"}
    assert all(torch.equal(found[k], saved[k]) for k in found if k not in special)
    for name in (CLASS + "weight", CLASS + "bias"):
        rows = [before[name][i] if j is None else saved[name][j] for i, j in enumerate(SOURCES)]
        assert torch.equal(found[name], torch.stack([*rows, saved[name][4]]))
    for name in queries:
        assert torch.equal(found[name], torch.cat([saved[name], saved[name][:3]]))
    assert torch.equal(found["criterion.empty_weight"], before["criterion.empty_weight"])
    assert "classes: 2 of 5 carried over by name; new: dog, cat, tree." in caplog.text
    assert "queries repeated from 6 to 9" in caplog.text


def test_without_finetune_class_layer_and_queries_are_new_and_the_log_names_the_key(tiny, caplog):
    model, before = load(tiny)
    found = model.state_dict()
    assert all(
        torch.equal(found[k], before[k]) for k in (CLASS + "weight", CLASS + "bias", QUERIES)
    )
    assert "set MODEL.MASK_FORMER.FINETUNE True" in caplog.text
    assert f"{CLASS}weight: (5, 16), the model has (6, 16)" in caplog.text


def test_a_resumed_run_is_not_fine_tuned_again(tiny, tmp_path):
    first, _ = load(tiny, "MODEL.MASK_FORMER.FINETUNE", "True")
    # Without names, another fine-tuning would reset the class layer.
    Checkpointer(first, str(tmp_path)).save("model_0000001")
    resumed, _ = load(tiny, "MODEL.MASK_FORMER.FINETUNE", "True", save_dir=tmp_path)
    found, expected = resumed.state_dict(), first.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_same_number_of_classes_with_other_names_is_a_warning(tiny, caplog):
    keys = ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES", "6"]
    load(tiny, *keys, class_names=["road", "sky", "car", "bicyclist"])
    assert "have other names or another order: set MODEL.MASK_FORMER.FINETUNE True" in caplog.text
    caplog.clear()
    load(tiny, *keys, class_names=OLD)
    assert "FINETUNE" not in caplog.text
