"""COCO's instance annotations, compared with pycocotools and loops over pixels."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.detection_utils import annotations_to_instances
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from mask_former.data.datasets import catalog
from mask_former.data.datasets.loaders import load_instances
from mask_former.data.formats.coco_instances import (
    check_segmentation,
    complete,
    decode_segmentation,
    instances_of_panoptic,
)
from mask_former.data.formats.readers import read_segment_map
from mask_former.data.formats.rle import area_and_box, encode_mask

SIZE = (20, 30)
WHERE = "x.json: annotation id 7"
SQUARE = [2, 3, 12, 3, 12, 9, 2, 9]  # 10 × 6 pixels


def random_mask(seed):
    return (np.random.default_rng(seed).random(SIZE) < 0.3).astype(np.uint8)


def runs_of(mask):
    """Return the lengths of alternating runs of 0 and 1, column by column."""
    counts, value = [0], 0
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def forms_of(mask):
    """Return the three forms of RLE: run lengths, compressed bytes and compressed text."""
    compressed = coco_mask.encode(np.asfortranarray(mask))
    text = compressed["counts"].decode()
    return [
        {"size": list(SIZE), "counts": runs_of(mask)},
        compressed,
        {"size": list(SIZE), "counts": text},
    ]


def random_polygons(seed):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-4, 34, (rng.integers(1, 4), rng.integers(3, 8), 2))
    return [polygon.ravel().tolist() for polygon in corners]


# Masks


@pytest.mark.parametrize("seed", range(4))
def test_every_form_of_rle_is_decoded_to_its_mask(seed):
    mask = random_mask(seed)
    for rle in forms_of(mask):
        found = decode_segmentation(rle, SIZE, WHERE)
        assert found.dtype == np.uint8 and found.shape == SIZE
        assert (found == mask).all()


@pytest.mark.parametrize("seed", range(8))
def test_polygons_are_decoded_to_the_union_of_pycocotools_masks(seed):
    polygons = random_polygons(seed)
    expected = np.zeros(SIZE, bool)
    for polygon in polygons:
        expected |= coco_mask.decode(coco_mask.frPyObjects([polygon], *SIZE))[..., 0] > 0
    assert (decode_segmentation(polygons, SIZE, WHERE) == expected).all()


def test_a_polygon_covers_the_pixels_between_its_corners():
    expected = np.zeros(SIZE, np.uint8)
    expected[3:9, 2:12] = 1
    assert (decode_segmentation([SQUARE], SIZE, WHERE) == expected).all()


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([], r"its segmentation is \[\], expected a list of polygons or an RLE"),
        (None, r"its segmentation is None, .*a box is not enough"),
        ([SQUARE, [1, 2, 3, 4]], r"a polygon is \[1, 2, 3, 4\], expected .*three points"),
        ([SQUARE[:-1]], r"a polygon is \[2, 3, 12, 3, 12, 9, 2\], expected .*a y for each x"),
        ([[*SQUARE, 5]], r"a polygon is \[2, 3, 12, 3, 12, 9, 2, 9\] and 1 more, expected"),
        (SQUARE, r"a polygon is 2, expected \[x0, y0"),
        ({"size": [30, 20], "counts": [600]}, r".*size \(30, 20\) .*the image's, \(20, 30\)"),
        ({"size": [20, 30]}, r"its RLE has the keys \['size'\].*expected 'counts'"),
        (
            {"size": [20, 30], "counts": [5, 594]},
            r"the counts of its RLE add up to 599 pixels, expected 600",
        ),
        ({"size": [20, 30], "counts": 5}, r"its RLE is damaged"),
    ],
)
def test_broken_segmentations_are_errors_that_name_file_and_annotation(segmentation, message):
    with pytest.raises(ValueError, match=rf"x\.json: annotation id 7: {message}"):
        decode_segmentation(segmentation, SIZE, WHERE)


def test_missing_areas_and_boxes_are_computed():
    completed = complete({"segmentation": [SQUARE]}, SIZE, WHERE)
    assert completed == {"segmentation": [SQUARE], "iscrowd": 0, "area": 60, "bbox": [2, 3, 10, 6]}
    given = {"segmentation": [SQUARE], "iscrowd": 1, "area": 1.5, "bbox": [0, 0, 1, 1]}
    assert complete(given, SIZE, WHERE) == given


# Panoptic annotations


@pytest.fixture
def panoptic(tmp_path):
    """The JSON of two images with things (categories 4 and 9, one a crowd) and stuff (2)."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for name in ("a", "b"):
        ids = rng.choice([0, 10, 300, 65536, 7], SIZE)
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 256**2], -1).astype(np.uint8)
        (tmp_path / "png").mkdir(exist_ok=True)
        Image.fromarray(rgb).save(tmp_path / "png" / f"{name}.png")
        Image.fromarray(rgb).save(tmp_path / f"{name}.jpg")
        infos = [
            {"id": 10, "category_id": 4, "iscrowd": 0},
            {"id": 7, "category_id": 2},
            {"id": 300, "category_id": 9},
            {"id": 65536, "category_id": 4, "iscrowd": 1},
        ]
        images.append({"id": name, "file_name": f"{name}.jpg", "height": 20, "width": 30})
        annotations.append({"image_id": name, "file_name": f"{name}.png", "segments_info": infos})
    categories = [
        {"id": 2, "name": "wall", "isthing": 0},
        {"id": 4, "name": "cat", "isthing": 1},
        {"id": 9, "name": "dog", "isthing": 1},
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (tmp_path / "panoptic.json").write_text(json.dumps(content))
    return content


def test_the_things_of_a_panoptic_annotation_become_instances(panoptic, tmp_path):
    found = instances_of_panoptic(panoptic, tmp_path / "png")
    assert [c["name"] for c in found["categories"]] == ["cat", "dog"]
    assert [a["id"] for a in found["annotations"]] == [1, 2, 3, 4, 5, 6]
    (tmp_path / "instances.json").write_text(json.dumps(found))  # plain JSON
    coco = COCO(tmp_path / "instances.json")
    for name in ("a", "b"):
        indices = read_segment_map(str(tmp_path / "png" / f"{name}.png"), [10, 7, 300, 65536])
        instances = coco.imgToAnns[name]
        assert [a["category_id"] for a in instances] == [4, 9, 4]
        assert [a["iscrowd"] for a in instances] == [0, 0, 1]
        for annotation, index in zip(instances, (1, 3, 4), strict=True):
            mask = indices == index
            assert (coco.annToMask(annotation) == mask).all()
            assert annotation["area"] == mask.sum()
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            x, y = columns[0], rows[0]
            assert annotation["bbox"] == [x, y, columns[-1] + 1 - x, rows[-1] + 1 - y]


def test_things_of_a_panoptic_json_are_loaded_as_instances(panoptic, tmp_path):
    records = load_instances(
        tmp_path,
        contiguous_ids={4: 0, 9: 1},
        panoptic_json=tmp_path / "panoptic.json",
        panoptic_root=tmp_path / "png",
    )
    assert [r["file_name"] for r in records] == [str(tmp_path / f"{n}.jpg") for n in "ab"]
    assert [a["category_id"] for a in records[0]["annotations"]] == [0, 1, 0]


# Loading


@pytest.fixture
def tree(tmp_path):
    """The content of a JSON: one image with a polygon of category 5, one without annotations."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).touch()
    size = {"height": 20, "width": 30}
    annotation = {"id": 0, "image_id": 1, "category_id": 5, "segmentation": [SQUARE]}
    return {
        "images": [{"id": i, "file_name": f"{n}.png", **size} for i, n in enumerate("ab", 1)],
        "annotations": [annotation],
        "categories": [{"id": 5, "name": "cat"}],
    }


def load(folder, content):
    (folder / "x.json").write_text(json.dumps(content))
    return load_instances(folder, folder / "x.json", contiguous_ids={5: 0, 3: 1})


def test_records_are_detectron2s_standard_dicts(tree, tmp_path):
    instance = {"id": 0, "category_id": 0, "segmentation": [SQUARE], "iscrowd": 0}
    instance |= {"bbox": [2, 3, 10, 6], "bbox_mode": 1}  # XYWH
    size = {"height": 20, "width": 30}
    assert load(tmp_path, tree) == [
        {
            "file_name": str(tmp_path / "a.png"),
            "image_id": 1,
            **size,
            "annotations": [instance],
        },
        {"file_name": str(tmp_path / "b.png"), "image_id": 2, **size, "annotations": []},
    ]


def test_detectron2_can_decode_the_loaded_records(tree, tmp_path):
    mask = random_mask(0)
    for rle in forms_of(mask)[::2]:  # JSON cannot hold bytes
        tree["annotations"][0]["segmentation"] = rle
        (annotation,) = load(tmp_path, tree)[0]["annotations"]
        instances = annotations_to_instances([annotation], SIZE, mask_format="bitmask")
        assert (instances.gt_masks.tensor[0].numpy() == mask).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category_id": 6}, r"id 0 has category_id 6, .* expected one of \[3, 5\]"),
        ({"image_id": 8}, r"id 0 has the image_id 8, which is not in `images`"),
        ({"segmentation": []}, r"id 0 of .*a\.png: its segmentation is \[\]"),
        ({"segmentation": {"size": [9, 9], "counts": [81]}}, r"id 0 of .*a\.png: its RLE has"),
        ({"segmentation": None}, r"id 0 of .*a\.png: its segmentation is None"),
    ],
)
def test_a_broken_annotation_is_an_error_that_names_json_and_annotation(
    tree, tmp_path, change, message
):
    tree["annotations"][0] |= change
    with pytest.raises(ValueError, match=rf"x\.json: annotation {message}"):
        load(tmp_path, tree)


def test_missing_keys_and_files_and_duplicate_ids_are_errors(tree, tmp_path):
    with pytest.raises(ValueError, match=r"annotation id 0 occurs twice"):
        load(tmp_path, tree | {"annotations": tree["annotations"] * 2})
    with pytest.raises(ValueError, match=r"id None of image_id None lacks \['id', 'image_id',"):
        load(tmp_path, tree | {"annotations": [{}]})
    with pytest.raises(ValueError, match=r"image with the id 3 lacks \['file_name', 'height'"):
        load(tmp_path, tree | {"images": [{"id": 3}]})
    with pytest.raises(ValueError, match=r"expected COCO instance format, but `annotations`"):
        load(tmp_path, tree | {"annotations": []})
    (tmp_path / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.png is missing, but .*x\.json names it"):
        load(tmp_path, tree)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"bbox": [float("nan"), 1, 2, 3]}, r"its bbox is \[nan, 1, 2, 3\], expected \[left, top"),
        ({"bbox": 5}, r"its bbox is 5, expected"),
        ({"bbox": "aaaa"}, r"its bbox is aaaa, expected"),
        ({"bbox": [1, 2, -3, 4]}, r"its bbox is \[1, 2, -3, 4\], expected"),
        ({"bbox": [1, 2, True, 4]}, r"its bbox is \[1, 2, True, 4\], expected"),
        ({"iscrowd": "x"}, r"its iscrowd is x, expected 0 or 1"),
        ({"iscrowd": [1]}, r"its iscrowd is \[1\], expected 0 or 1"),
    ],
)
def test_a_box_or_crowd_of_another_kind_is_refused_with_image_and_annotation(
    tree, tmp_path, change, message
):
    tree["annotations"][0] |= {"area": 60, "bbox": [2, 3, 10, 6], **change}
    with pytest.raises(ValueError, match=rf"x\.json: annotation id 0 of .*a\.png: {message}"):
        load(tmp_path, tree)


@pytest.mark.parametrize("height", [-5, 0, 1e30, True, "20", None, float("nan"), 65_536, 20.5])
def test_a_side_that_is_not_a_number_of_pixels_is_refused_with_its_image(tree, tmp_path, height):
    tree["images"][0]["height"] = height
    with pytest.raises(ValueError, match=r"x\.json: the image with the id 1 has the height"):
        load(tmp_path, tree)


def test_a_whole_number_may_be_written_as_a_fraction(tree, tmp_path):
    tree["images"][0]["height"] = 20.0
    assert load(tmp_path, tree)[0]["height"] == 20


@pytest.mark.parametrize("key", ["images", "annotations"])
@pytest.mark.parametrize("entries", [{"a": {}}, "text", [1], [[]], [{}, None]])
def test_entries_that_are_not_mappings_are_refused_by_the_files_name(tree, tmp_path, key, entries):
    with pytest.raises(ValueError, match=rf"x\.json: expected COCO .*`{key}` is .*not a list of"):
        load(tmp_path, tree | {key: entries})


def test_an_outline_that_takes_all_memory_is_refused(tree, tmp_path):
    zigzag = [value for i in range(20_000) for value in (0, 0, 300, i % 7)]
    tree["annotations"][0]["segmentation"] = [zigzag]
    with pytest.raises(ValueError, match=r"the outline of a polygon is \d+ pixels long"):
        load(tmp_path, tree)


@pytest.mark.parametrize("counts", ["111", "1", "", "oo", "Ü", "0" * 9, "ooooooooo0"])
def test_damaged_counts_are_refused_before_a_mask_is_made(tree, tmp_path, counts):
    size = [60_000, 60_000]
    for image in tree["images"]:
        image.update(height=size[0], width=size[1])
    tree["annotations"][0]["segmentation"] = {"size": size, "counts": counts}
    with pytest.raises(ValueError, match=r"annotation id 0 .*its RLE"):
        load(tmp_path, tree)


@pytest.mark.parametrize("seed", range(4))
def test_area_and_box_of_a_segmentation_are_those_of_its_mask(seed):
    mask = random_mask(seed)
    expected = area_and_box(encode_mask(mask))
    for rle in forms_of(mask):
        found = complete({"segmentation": rle}, SIZE, WHERE)
        assert (found["area"], found["bbox"]) == expected
    polygons = random_polygons(seed)
    expected = area_and_box(encode_mask(decode_segmentation(polygons, SIZE, WHERE)))
    found = complete({"segmentation": polygons}, SIZE, WHERE)
    assert (found["area"], found["bbox"]) == expected


# Tables


def write_table(folder, **dataset):
    entry = {"kind": "instances", "image_root": ".", **dataset}
    categories = [
        {"id": 2, "name": "wall", "color": [1, 1, 1]},
        {"id": 4, "name": "cat", "color": [2, 2, 2], "isthing": True},
        {"id": 5, "name": "dog", "color": [3, 3, 3], "isthing": True},
    ]
    content = {"prepare": "-", "datasets": {"own_instances": entry}, "categories": categories}
    path = folder / "table.json"
    path.write_text(json.dumps(content))
    return path


def test_classes_of_an_instances_dataset_are_the_things_of_its_table(
    restored_catalogs, tree, tmp_path
):
    (tmp_path / "x.json").write_text(json.dumps(tree))
    catalog.register_table(write_table(tmp_path, json_file="x.json"), tmp_path)
    metadata = MetadataCatalog.get("own_instances")
    assert metadata.thing_classes == ["cat", "dog"]
    assert metadata.thing_colors == [[2, 2, 2], [3, 3, 3]]
    assert metadata.thing_dataset_id_to_contiguous_id == {4: 0, 5: 1}
    assert metadata.evaluator_type == "coco"
    assert metadata.json_file == str(tmp_path / "x.json")
    records = DatasetCatalog.get("own_instances")
    assert [[a["category_id"] for a in r["annotations"]] for r in records] == [[1], []]


def test_a_table_of_instances_needs_annotation_files_and_things(tmp_path):
    with pytest.raises(ValueError, match=r"an? instances dataset needs \['json_file'\]"):
        catalog.read_table(write_table(tmp_path))
    with pytest.raises(ValueError, match=r"instances dataset needs \['panoptic_root'\]"):
        catalog.read_table(write_table(tmp_path, panoptic_json="p.json"))
    path = write_table(tmp_path, json_file="x.json")
    path.write_text(path.read_text().replace("true", "false"))
    with pytest.raises(ValueError, match=r"instances need a category that is a thing"):
        catalog.read_table(path)


@pytest.mark.parametrize("family, things", [("camvid", 3), ("shapes", 8)])
@pytest.mark.parametrize("split", ["train", "val"])
def test_builtin_panoptic_datasets_also_exist_as_instances(
    restored_catalogs, family, things, split
):
    catalog.register_tables("root")
    metadata = MetadataCatalog.get(f"{family}_instances_{split}")
    panoptic = MetadataCatalog.get(f"{family}_panoptic_{split}")
    assert len(metadata.thing_classes) == things
    assert metadata.panoptic_json == panoptic.panoptic_json
    assert metadata.thing_dataset_id_to_contiguous_id.keys() == (
        panoptic.thing_dataset_id_to_contiguous_id.keys()
    )


@pytest.mark.parametrize(
    "segmentation",
    [[[[0, 0], [4, 0], [4, 4]] * 2], {"size": [6.0, 8.0], "counts": [48]}],
    ids=["pairs of coordinates", "fractional sides"],
)
def test_numbers_in_another_form_are_refused(segmentation):
    with pytest.raises(ValueError, match="x"):
        check_segmentation(segmentation, (6, 8), "x")


def test_many_segments_of_one_id_are_refused_in_time():
    begin = time.monotonic()
    with pytest.raises(ValueError, match=r"and \[5\] more than once"):
        read_segment_map("x.png", [5] * 100_000)
    assert time.monotonic() - begin < 5
