"""Classes: construction from metadata, palettes, and plain data."""

from __future__ import annotations

import json

import pytest
from detectron2.data import Metadata, MetadataCatalog

import mask_former  # noqa: F401  (registers the datasets)
from mask_former.data.datasets.classes import Classes
from mask_former.utils.colors import PALETTES, colorblind_color

CLASSES = Classes(
    ["sky", "road", "car"], [(70, 130, 180), (128, 64, 128), (0, 0, 142)], [False, False, True]
)


def test_names_colours_and_things_come_from_the_metadata():
    metadata = Metadata(
        stuff_classes=CLASSES.names,
        stuff_colors=[list(c) for c in CLASSES.colors],
        thing_dataset_id_to_contiguous_id={7: 2},
    )
    assert Classes.from_metadata(metadata, 3) == CLASSES
    assert CLASSES.thing_ids == [2]


def test_thing_classes_are_used_if_only_their_number_fits():
    metadata = Metadata(stuff_classes=["things", "sky"], thing_classes=["a", "b", "c"])
    classes = Classes.from_metadata(metadata, 3)
    assert classes.names == ["a", "b", "c"] and classes.thing_ids == [0, 1, 2]


@pytest.mark.parametrize("metadata", [Metadata(), Metadata(stuff_classes=["a", "b"])])
def test_without_a_name_for_every_class_classes_are_numbered(metadata):
    classes = Classes.from_metadata(metadata, 4)
    assert classes.names == ["class 0", "class 1", "class 2", "class 3"]
    assert len(set(classes.colors)) == 4 and classes.thing_ids == []


@pytest.mark.parametrize(
    "dataset, count, things",
    [
        ("shapes_panoptic_val", 12, 8),
        ("shapes_instances_val", 8, 8),
        ("ade20k_sem_seg_val", 150, 0),
        ("ade20k_panoptic_val", 150, 100),
        ("coco_2017_val_panoptic", 133, 80),
    ],
)
def test_builtin_datasets_have_the_expected_number_of_things(dataset, count, things):
    assert dataset in MetadataCatalog.list()
    assert len(Classes.from_metadata(MetadataCatalog.get(dataset), count).thing_ids) == things


# Palettes


def test_a_palettes_colour_depends_only_on_the_class_id():
    assert CLASSES.with_palette("dataset") == CLASSES
    few, many = (
        Classes(["a"] * n, [(0, 0, 0)] * n, [True] * n).with_palette("colorblind") for n in (3, 90)
    )
    assert few.colors == many.colors[:3] == [colorblind_color(i) for i in range(3)]
    assert few.names == ["a"] * 3 and few.is_thing == [True] * 3


def test_every_palette_has_a_colour_for_every_class():
    for name in PALETTES:
        assert len(CLASSES.with_palette(name).colors) == 3


def test_the_error_for_an_unknown_palette_lists_the_known_ones():
    with pytest.raises(ValueError, match="no palette 'rainbow'; choose from dataset, spread"):
        CLASSES.with_palette("rainbow")


# Plain data


def test_classes_survive_a_json_round_trip():
    data = json.loads(json.dumps(CLASSES.to_data()))
    assert data[2] == {"name": "car", "color": [0, 0, 142], "isthing": True}
    assert Classes.from_data(data) == CLASSES
    assert Classes.from_data([]) == Classes([], [], [])


@pytest.mark.parametrize("entry", [{"name": "a"}, {"name": "a", "color": [1], "isthing": 0}, "a"])
def test_data_in_another_format_is_refused(entry):
    with pytest.raises(ValueError, match=r"list of dicts of name, color .* and isthing; found"):
        Classes.from_data([entry])


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="found 2 names, 1 colours and 0 values of is_thing"):
        Classes(["a", "b"], [(0, 0, 0)], [])
