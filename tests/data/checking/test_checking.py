"""Dataset checks: each planted mistake is found in its file, and nothing else is reported."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from yacs.config import CfgNode

from mask_former.config.keys import get_mask_former_cfg
from mask_former.config.validation import validate
from mask_former.data.checking import (
    ClassTable,
    ImageCheck,
    Source,
    check_image,
    fitting_config,
    from_coco_json,
    from_folders,
    from_registered,
    summarize,
)
from mask_former.data.formats.coco_panoptic import write_ids

HEIGHT, WIDTH = 40, 60
CLASSES = ClassTable(["sky", "road", "car"], ignore_label=255)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def plain_image(height=HEIGHT, width=WIDTH):
    return np.full((height, width, 3), 90, np.uint8)


def label_map():
    """Return a 40×60 label map with 600 pixels of each class and 600 ignored ones."""
    return np.repeat(np.array([0, 1, 2, 255], np.uint8), 15)[None].repeat(HEIGHT, 0)


@pytest.fixture
def folders(tmp_path):
    """Folders of three images and of their label maps."""
    for stem in "abc":
        save(tmp_path / "images" / f"{stem}.png", plain_image())
        save(tmp_path / "labels" / f"{stem}.png", label_map())
    return tmp_path / "images", tmp_path / "labels"


def check(source):
    return summarize(source, [check_image(record, source.classes) for record in source.records])


def errors_in(summary):
    """Return the messages of the errors by file name."""
    found: dict[str, list[str]] = {}
    for finding in summary.findings + summary.overall:
        if finding.is_error:
            found.setdefault(finding.file.rpartition("/")[2], []).append(finding.message)
    return found


def notes_in(summary):
    return [f"{f.file}: {f.message}" for f in summary.findings + summary.overall if not f.is_error]


def one_error(source, file, pattern):
    found = errors_in(check(source))
    assert list(found) == [file], found
    assert len(found[file]) == 1 and re.search(pattern, found[file][0]), found[file]


# Label maps


def test_a_valid_dataset_has_no_finding_and_its_pixels_are_counted(folders):
    summary = check(from_folders(*folders, CLASSES))
    assert summary.findings == summary.overall == []
    assert summary.pixels == {0: 1800, 1: 1800, 2: 1800, 255: 1800}
    assert summary.images == {0: 3, 1: 3, 2: 3, 255: 3}
    assert summary.sizes == [(HEIGHT, WIDTH)] * 3 and summary.most_targets == 3


def test_every_file_without_a_partner_is_reported(folders):
    images, labels = folders
    (labels / "a.png").unlink()
    (images / "c.png").unlink()
    found = errors_in(check(from_folders(*folders, CLASSES)))
    assert list(found) == ["a.png", "c.png"]
    assert f"'a.*' in {labels}" in found["a.png"][0] and f"'c.*' in {images}" in found["c.png"][0]


def test_a_mistake_in_one_file_hides_nothing_in_the_others(folders):
    images, labels = folders
    (images / "a.png").write_bytes(b"no image")
    (labels / "b.png").write_bytes((labels / "b.png").read_bytes()[:60])
    save(labels / "c.png", label_map()[:, :50])
    found = errors_in(check(from_folders(*folders, CLASSES)))
    assert sorted(found) == ["a.png", "b.png", "c.png"]
    assert "cannot be read" in found["a.png"][0] and "cannot be read" in found["b.png"][0]
    assert "50×40" in found["c.png"][0]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda content: b"", "it is empty"),
        (lambda content: b"not an image", "Pillow does not recognise its format"),
        (lambda content: content[:60], "the PNG is truncated after 60 bytes"),
    ],
)
def test_an_unreadable_label_map_is_reported_like_an_unreadable_image_and_hides_nothing(
    folders, damage, reason
):
    images, labels = folders
    (labels / "a.png").write_bytes(damage((labels / "a.png").read_bytes()))
    (images / "b.png").write_bytes(damage((images / "b.png").read_bytes()))
    save(labels / "c.png", np.full((HEIGHT, WIDTH), 7, np.uint8))
    found = errors_in(check(from_folders(*folders, CLASSES)))
    assert sorted(found) == ["a.png", "b.png", "c.png", "labels"]
    for file, folder in (("a.png", labels), ("b.png", images)):
        assert len(found[file]) == 1 and found[file][0].startswith(str(folder / file))
        assert f"cannot be read as an image: {reason}. Restore the file" in found[file][0]
    assert "found the class ids [7]" in found["c.png"][0]


def test_an_image_and_its_label_map_that_are_both_unreadable_are_both_reported(folders):
    for folder in folders:
        (folder / "a.png").write_bytes(b"")
    findings = check(from_folders(*folders, CLASSES)).findings
    assert [finding.file for finding in findings] == [str(f / "a.png") for f in folders]


def test_all_mistakes_of_a_label_map_are_found(folders):
    labels = label_map()[:, :50].copy()
    labels[0, 0] = 9
    save(folders[1] / "a.png", labels)
    messages = errors_in(check(from_folders(*folders, CLASSES)))["a.png"]
    assert ["the same size" in messages[0], "[9]" in messages[1]] == [True, True]


def test_an_image_rotated_by_exif_is_measured_upright(folders):
    images, _ = folders
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated by 90 degrees
    Image.fromarray(plain_image()).save(images / "a.png", exif=exif)
    one_error(from_folders(*folders, CLASSES), "a.png", r"is 40×60 .* sides are swapped.*EXIF")
    Image.fromarray(plain_image(WIDTH, HEIGHT)).save(images / "a.png", exif=exif)
    assert errors_in(check(from_folders(*folders, CLASSES))) == {}


@pytest.mark.parametrize(
    ("array", "pattern"),
    [
        (np.repeat(label_map()[..., None], 3, 2), "channels are equal.*keep one"),
        (np.stack([label_map(), label_map() // 2, label_map()], 2), r"4 colours, \(0, 0, 0\)"),
        (np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), "interpolated"),
    ],
)
def test_the_error_for_a_coloured_label_map_names_its_likely_cause(folders, array, pattern):
    save(folders[1] / "a.png", array)
    one_error(from_folders(*folders, CLASSES), "a.png", pattern)


def test_a_palette_image_is_read_as_its_indices(folders):
    image = Image.fromarray(label_map())
    image.putpalette([7, 8, 9] * 256)
    image.save(folders[1] / "a.png")
    assert errors_in(check(from_folders(*folders, CLASSES))) == {}


def test_an_image_without_a_label_is_a_note(folders):
    save(folders[1] / "b.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    summary = check(from_folders(*folders, CLASSES))
    assert errors_in(summary) == {} and len(notes_in(summary)) == 1
    assert "b.png: no pixel has a class" in notes_in(summary)[0]


def test_classes_that_never_occur_are_noted(folders):
    summary = check(from_folders(*folders, ClassTable([*CLASSES.names, "bus", "tram"], 255)))
    assert notes_in(summary) == ["classes: 2 of 5 never occur: bus, tram."]


@pytest.mark.parametrize(
    ("values", "classes", "pattern"),
    [
        ([1, 2, 3, 255], CLASSES, "start at 1: subtract 1"),
        ([0, 1, 2, 3], CLASSES, "0 mean 'no label'.*should 3 be ignored.*class missing"),
        ([0, 1, 2, 255], ClassTable(CLASSES.names, 254), "Should 255 be ignored"),
        ([0, 7, 9, 255], CLASSES, r"labels are 0, 7, 9, 255.*renumber"),
        ([0, 3, 4, 5], CLASSES, "Are classes missing"),
        ([0, 255, 0, 255], ClassTable(["none", "wound"], 255), "binary masks.*second class is los"),
        (
            [0, 255, 0, 255],
            ClassTable(["none", "wound"], 254),
            "binary masks.*'0: background'",
        ),
    ],
)
def test_the_values_of_all_label_maps_hint_at_the_likely_mistake(folders, values, classes, pattern):
    for path in folders[1].iterdir():
        save(path, np.repeat(np.array(values, np.uint8), 15)[None].repeat(HEIGHT, 0))
    hints = errors_in(check(from_folders(*folders, classes)))["labels"]
    assert len(hints) == 1 and re.search(pattern, hints[0]), hints


def test_one_class_with_all_other_pixels_ignored_is_accepted(folders):
    for path in folders[1].iterdir():
        save(path, np.where(label_map() == 1, 0, 255).astype(np.uint8))
    assert errors_in(check(from_folders(*folders, ClassTable(["road"], 255)))) == {}


def test_an_ignore_label_that_is_a_class_is_an_error(folders):
    found = errors_in(check(from_folders(*folders, ClassTable([str(i) for i in range(256)], 255))))
    assert "the id of the class '255'" in found["dataset"][0]


def test_pixel_values_can_be_mapped_to_classes(folders):
    source = from_folders(*folders, CLASSES, {0: 2, 1: 0, 2: 1, 255: 255})
    assert errors_in(check(source)) == {}
    source = from_folders(*folders, CLASSES, {0: 2, 1: 0, 255: 255})
    found = errors_in(check(source))
    assert sorted(found) == ["a.png", "b.png", "c.png"] and "[2]" in found["a.png"][0]


# COCO


SQUARE = [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]


@pytest.fixture
def coco(tmp_path):
    """The content of an instance JSON of two saved images with one instance each."""
    images = []
    for number, stem in enumerate("ab"):
        save(tmp_path / "images" / f"{stem}.png", plain_image())
        entry = {"id": number, "file_name": f"{stem}.png", "height": HEIGHT, "width": WIDTH}
        images.append(entry)
    annotations = [
        {"id": 5 + i, "image_id": i, "category_id": 3 + 4 * i, "segmentation": [SQUARE]}
        for i in range(2)
    ]
    categories = [{"id": 7, "name": "car"}, {"id": 3, "name": "dog"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def instances(tmp_path, content):
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    return from_coco_json(path, tmp_path / "images")


def test_valid_instances_are_counted_by_contiguous_class(coco, tmp_path):
    source = instances(tmp_path, coco)
    summary = check(source)
    assert summary.findings == summary.overall == []
    assert list(source.classes.names) == ["dog", "car"]
    assert summary.pixels == {0: 100, 1: 100}


def _set(key, value):
    return lambda content: content["annotations"][0].update({key: value})


RLE = {"size": [HEIGHT, WIDTH], "counts": [5, 20, HEIGHT * WIDTH - 25]}


@pytest.mark.parametrize(
    ("plant", "file", "pattern"),
    [
        (_set("category_id", 4), "a.png", r"category_id \[4\] .*'categories': \[3, 7\]"),
        (_set("image_id", 9), "instances.json", r"annotations have the image_id \[9\]"),
        (_set("id", 6), "instances.json", r"id of 'annotations' \[6\] occurs more than once"),
        (_set("segmentation", []), "a.png", "annotation id 5.*box is not enough"),
        (_set("segmentation", [[1, 2, 3, 4]]), "a.png", "three points"),
        (_set("segmentation", [[-50.0, 10, -20, 10, -20, 30]]), "a.png", "no pixel.*outside"),
        (_set("segmentation", RLE | {"size": [WIDTH, HEIGHT]}), "a.png", r"RLE.*\(60, 40\)"),
        (_set("segmentation", RLE | {"counts": [5, 20]}), "a.png", "add up to 25"),
        (lambda c: c["images"][0].update(height=41), "a.png", "(?i)mismatched.*41"),
        (lambda c: c["images"][0].update(file_name="x.png"), "x.png", "is missing"),
        (
            lambda c: c["images"].append(c["images"][0]),
            "instances.json",
            r"id of 'images' \[0\] occurs",
        ),
        (
            lambda c: c["categories"][0].update(name="dog"),
            "instances.json",
            r"category name \['dog'\]",
        ),
    ],
)
def test_each_mistake_in_an_instance_json_is_found_and_located(
    coco, tmp_path, plant, file, pattern
):
    plant(coco)
    one_error(instances(tmp_path, coco), file, pattern)


def test_an_rle_is_accepted_instead_of_polygons(coco, tmp_path):
    _set("segmentation", RLE)(coco)
    summary = check(instances(tmp_path, coco))
    assert errors_in(summary) == {} and summary.pixels[0] == 20


def test_polygons_that_leave_the_image_and_images_without_instances_are_notes(coco, tmp_path):
    _set("segmentation", [[50.0, 10.0, 64.0, 10.0, 64.0, 20.0]])(coco)
    coco["annotations"].pop()
    summary = check(instances(tmp_path, coco))
    assert errors_in(summary) == {}
    beyond, empty, never = notes_in(summary)
    assert "id 5 reaches 4 pixels beyond the 60×40" in beyond
    assert "b.png: no pixel has a class" in empty and "1 of 2 never occur: car" in never


@pytest.fixture
def panoptic(tmp_path, coco):
    """The content of a panoptic JSON of the same images, whose PNGs are saved."""
    annotations = []
    for image in coco["images"]:
        ids = np.zeros((HEIGHT, WIDTH), np.int32)
        ids[:, :20], ids[:, 20:40] = 1, 70000
        path = tmp_path / "png" / image["file_name"]
        path.parent.mkdir(exist_ok=True)
        write_ids(path, ids)
        infos = [{"id": 1, "category_id": 3}, {"id": 70000, "category_id": 7}]
        entry = {"image_id": image["id"], "file_name": image["file_name"], "segments_info": infos}
        annotations.append(entry)
    categories = [category | {"isthing": 1} for category in coco["categories"]]
    return {"images": coco["images"], "annotations": annotations, "categories": categories}


def panoptic_source(tmp_path, content, root="png"):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    return from_coco_json(path, tmp_path / "images", root and tmp_path / root)


def test_valid_panoptic_annotations_are_counted(panoptic, tmp_path):
    summary = check(panoptic_source(tmp_path, panoptic))
    assert summary.findings == summary.overall == []
    assert summary.pixels == {0: 1600, 1: 1600} and summary.most_targets == 2


def _segment(**values):
    return lambda content: content["annotations"][0]["segments_info"][0].update(values)


@pytest.mark.parametrize(
    ("plant", "file", "pattern"),
    [
        (_segment(id=2), "a.png", r"ids \[1\] are in the PNG but not"),
        (_segment(id=70000), "a.png", r"\[70000\] more than once"),
        (_segment(category_id=8), "a.png", r"category_id \[8\]"),
        (lambda c: c["annotations"][0].update(file_name="x.png"), "x.png", "is missing"),
        (lambda c: c["annotations"].append(c["annotations"][1]), "panoptic.json", "image_id of"),
    ],
)
def test_each_mistake_in_a_panoptic_json_is_found_and_located(
    panoptic, tmp_path, plant, file, pattern
):
    plant(panoptic)
    one_error(panoptic_source(tmp_path, panoptic), file, pattern)


def test_an_image_without_a_panoptic_annotation_is_a_note(panoptic, tmp_path):
    panoptic["annotations"].pop()
    summary = check(panoptic_source(tmp_path, panoptic))
    assert errors_in(summary) == {} and summary.num_images == 1
    assert "b.png: is in 'images'" in notes_in(summary)[0]


def test_the_two_formats_are_distinguished(panoptic, coco, tmp_path):
    with pytest.raises(ValueError, match="pass the folder"):
        panoptic_source(tmp_path, panoptic, root=None)
    with pytest.raises(ValueError, match="no 'segments_info'"):
        panoptic_source(tmp_path, coco)


def test_a_json_of_another_format_is_an_error(coco, tmp_path):
    del coco["images"][0]["id"]
    with pytest.raises(ValueError, match="not in COCO's format: KeyError 'id'"):
        instances(tmp_path, coco)
    with pytest.raises(FileNotFoundError, match=r"absent\.json is missing"):
        from_coco_json(tmp_path / "absent.json", tmp_path)


# Registered datasets


@pytest.fixture
def registered(folders):
    """A function that registers a loader as the dataset "checked"."""

    def register(load, **metadata):
        DatasetCatalog.register("checked", load)
        MetadataCatalog.get("checked").set(stuff_classes=CLASSES.names, ignore_label=255)
        MetadataCatalog.get("checked").set(**metadata)

    yield register
    DatasetCatalog.remove("checked")
    MetadataCatalog.remove("checked")


def test_a_registered_dataset_is_checked_against_its_metadata(folders, registered):
    registered(lambda: from_folders(*folders, CLASSES).records)
    source = from_registered("checked")
    assert (source.classes, len(source.records)) == (CLASSES, 3)
    assert errors_in(check(source)) == {}


def test_all_mistakes_are_found_where_the_loader_stops_at_the_first(folders, registered):
    def load():
        raise FileNotFoundError("the first")

    for stem in "ab":
        (folders[1] / f"{stem}.png").unlink()
    registered(load, image_root=str(folders[0]), sem_seg_root=str(folders[1]))
    assert list(errors_in(check(from_registered("checked")))) == ["a.png", "b.png"]


def test_a_loaders_error_is_raised_if_the_metadata_name_no_folders(registered):
    def load():
        raise FileNotFoundError("the first")

    registered(load)
    with pytest.raises(FileNotFoundError, match="the first"):
        from_registered("checked")


def test_an_unknown_dataset_is_an_error_that_lists_the_known_ones():
    with pytest.raises(KeyError, match=r"no dataset 'nowhere'.*coco_2017_train"):
        from_registered("nowhere")


# The fitting config


def test_the_fitting_config_merges_and_is_valid(folders):
    source = from_folders(*folders, CLASSES)
    values = fitting_config(source, check(source))
    cfg = get_mask_former_cfg()
    cfg.MODEL.META_ARCHITECTURE = "MaskFormer"
    cfg.MODEL.SEM_SEG_HEAD.NAME = "MaskFormerHead"
    cfg.merge_from_other_cfg(CfgNode(values))
    validate(cfg)
    assert cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES == 3
    assert cfg.INPUT.CROP.SIZE == [32, 32]  # images are 40 pixels high


def test_images_of_ade20ks_size_get_the_published_sizes():
    sizes = [(512, 683), (600, 512), (512, 700)]
    source = Source([{"sem_seg_file_name": ""}], CLASSES)
    summary = summarize(source, [ImageCheck(size=size) for size in sizes])
    values = fitting_config(source, summary)["INPUT"]
    assert values["MIN_SIZE_TRAIN"] == [int(0.1 * step * 512) for step in range(5, 21)]
    sizes = [values[key] for key in ("MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST")]
    assert sizes == [2048, 512, 2048] and values["CROP"]["SIZE"] == [512, 512]


@pytest.mark.parametrize("kind", ["panoptic", "instance"])
def test_the_mapper_and_the_results_fit_the_annotation(kind, panoptic, coco, tmp_path):
    is_panoptic = kind == "panoptic"
    source = panoptic_source(tmp_path, panoptic) if is_panoptic else instances(tmp_path, coco)
    config = fitting_config(source, check(source))
    assert config["INPUT"]["DATASET_MAPPER_NAME"] == f"mask_former_{kind}"
    test = config["MODEL"]["MASK_FORMER"]["TEST"]
    assert (test["PANOPTIC_ON"], test["INSTANCE_ON"]) == (is_panoptic, not is_panoptic)
