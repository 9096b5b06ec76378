"""Tables of datasets, the metadata and loaders registered from them, and the two loaders."""

from __future__ import annotations

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import builtin_meta, coco_panoptic

from mask_former.data.datasets import catalog
from mask_former.data.datasets.custom import copy_table
from mask_former.data.datasets.loaders import load_panoptic, load_sem_seg
from mask_former.data.shapes import writer
from tests.helpers.paths import ROOT as REPOSITORY

pytestmark = pytest.mark.usefixtures("restored_catalogs")

SHARED = REPOSITORY.parent / "shared"
GOLDEN = REPOSITORY / "tests" / "golden" / "dataset_metadata_sha256.json"
ROOT = "$DETECTRON2_DATASETS"  # as in the published facts
ADDED_KEYS = {"ignore_label", "sem_seg_root", "thing_colors"}  # to the published metadata


def published_metadata(name: str) -> dict[str, Any]:
    return json.loads(json.dumps(MetadataCatalog.get(name).as_dict()))


def write_table(folder: Path, **changes: Any) -> Path:
    content = {
        "prepare": "python prepare_own.py",
        "datasets": {"own": {"kind": "sem_seg", "image_root": "own/i", "sem_seg_root": "own/l"}},
        "categories": [{"name": "cat"}, {"name": "dog"}],
        **changes,
    }
    path = folder / "own.json"
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return path


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


# ---------------------------------------------------------------------------------- metadata


@pytest.mark.parametrize("name", sorted(json.loads(GOLDEN.read_text())))
def test_published_metadata_has_the_golden_checksum_of_every_key(name: str) -> None:
    catalog.register_tables(ROOT)
    found = {
        key: hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
        for key, value in published_metadata(name).items()
    }
    expected = json.loads(GOLDEN.read_text())[name]
    assert found.items() >= expected.items()
    assert found.keys() - expected.keys() <= ADDED_KEYS


def test_published_metadata_equals_the_spec() -> None:
    spec = SHARED / "spec" / "datasets.json"
    if not spec.exists():
        pytest.skip("needs ../shared/spec/datasets.json")
    catalog.register_tables(ROOT)
    for name, expected in json.loads(spec.read_text(encoding="utf-8")).items():
        assert published_metadata(name).items() >= expected.items(), name


def test_mask2formers_metadata_equals_the_spec_except_for_maskformers_datasets() -> None:
    specs = [SHARED / "spec" / "datasets.json", SHARED / "spec" / "mask2former" / "datasets.json"]
    if not specs[1].exists():
        pytest.skip("needs ../shared/spec/mask2former/datasets.json")
    catalog.register_tables()
    root = str(catalog.datasets_root())  # also that of the datasets which detectron2 registers
    maskformers, published = (json.loads(spec.read_text(encoding="utf-8")) for spec in specs)
    for name in published.keys() - maskformers.keys():
        expected = json.loads(json.dumps(published[name]).replace(ROOT, root))
        assert published_metadata(name).items() >= expected.items(), name


def test_id_maps_have_integer_keys() -> None:
    catalog.register_tables(ROOT)
    metadata = MetadataCatalog.get("ade20k_panoptic_val")
    assert metadata.thing_dataset_id_to_contiguous_id[7] == 7
    assert {type(key) for key in metadata.stuff_dataset_id_to_contiguous_id} == {int}


@pytest.mark.parametrize("split", ["train", "val"])
def test_detectron2s_datasets_get_the_things_of_coco_and_the_colours_of_ade20k(split: str) -> None:
    name = f"coco_2017_{split}_panoptic"
    catalog.register_tables()
    metadata = MetadataCatalog.get(name)
    catalog.register_tables()
    assert MetadataCatalog.get(name) is metadata, "repeated calls change nothing"
    things = builtin_meta._get_coco_instances_meta()
    assert metadata.thing_classes == things["thing_classes"]
    assert metadata.thing_colors == things["thing_colors"]
    assert len(metadata.stuff_classes) == 133 and metadata.evaluator_type == "coco_panoptic_seg"
    ade20k = MetadataCatalog.get(f"ade20k_sem_seg_{split}")
    panoptic = MetadataCatalog.get(f"ade20k_panoptic_{split}")
    assert ade20k.stuff_colors == panoptic.stuff_colors and len(ade20k.stuff_classes) == 150


def test_tables_of_the_same_dataset_have_the_same_classes() -> None:
    def columns(name: str, *fields: str) -> list[tuple[Any, ...]]:
        rows = catalog.read_table(name).categories
        return [tuple(getattr(row, field) for field in fields) for row in rows]

    vistas = [columns(f"mapillary_vistas{suffix}", "name", "color") for suffix in ("", "_panoptic")]
    assert vistas[0] == vistas[1]
    fields = ("id", "color", "isthing", "source_id")
    things = [row for row in columns("ade20k_panoptic", *fields) if row[2]]
    assert columns("ade20k_instance", *fields) == things
    coco = [
        tuple(c[key] for key in ("id", "name", "color", "isthing"))
        for c in builtin_meta.COCO_CATEGORIES
    ]
    assert columns("coco_panoptic", "id", "name", "color", "isthing") == coco


def test_a_panoptic_dataset_can_be_loaded_without_the_json_for_evaluating_instances(
    tmp_path: Path,
) -> None:
    content = panoptic_tree(tmp_path)
    (tmp_path / "p.json").write_text(json.dumps(content))
    paths = {"image_root": "i", "panoptic_root": "p", "panoptic_json": "p.json"}
    own = {"kind": "panoptic", **paths, "sem_seg_root": "s", "json_file": "instances.json"}
    categories = [{"id": 5, "name": "ground"}, {"id": 9, "name": "dog", "isthing": True}]
    changes = {"datasets": {"own": own}, "categories": categories, "separate_things": True}
    catalog.register_table(write_table(tmp_path, **changes), root=tmp_path)
    (record,) = DatasetCatalog.get("own")
    assert record["sem_seg_file_name"] == str(tmp_path / "s/a.png")
    metadata = MetadataCatalog.get("own")
    assert metadata.json_file == str(tmp_path / "instances.json")
    assert metadata.sem_seg_root == str(tmp_path / "s")
    assert (metadata.thing_classes, metadata.stuff_classes) == (["dog"], ["ground", "dog"])


@pytest.mark.parametrize("name", ["camvid_panoptic_train", "shapes_panoptic_val"])
def test_panoptic_metadata_follows_detectron2s_standard_coco_panoptic(name: str) -> None:
    catalog.register_tables("root")
    metadata = MetadataCatalog.get(name)
    assert metadata.thing_classes == metadata.stuff_classes
    assert metadata.thing_colors == metadata.stuff_colors
    things = metadata.thing_dataset_id_to_contiguous_id
    stuff = metadata.stuff_dataset_id_to_contiguous_id
    assert not things.keys() & stuff.keys()
    both = sorted([*things.values(), *stuff.values()])
    assert both == list(range(len(metadata.stuff_classes)))
    assert (metadata.evaluator_type, metadata.ignore_label) == ("coco_panoptic_seg", 255)
    assert metadata.label_divisor == 1000
    split = name.rsplit("_", 1)[1]
    folder = Path("root") / ("camvid" if name.startswith("camvid") else "shapes_panoptic")
    assert metadata.panoptic_json == str(folder / f"panoptic_{split}.json")


def test_camvid_has_its_eleven_classes_in_label_order() -> None:
    catalog.register_tables()
    assert MetadataCatalog.get("camvid_sem_seg_test").stuff_classes == [
        *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence"),
        *("car", "pedestrian", "bicyclist"),
    ]
    assert MetadataCatalog.get("camvid_sem_seg_test").evaluator_type == "sem_seg"
    things = MetadataCatalog.get("camvid_panoptic_test").thing_dataset_id_to_contiguous_id
    assert things == {8: 8, 9: 9, 10: 10}


@pytest.mark.parametrize("path", sorted(catalog.TABLES.glob("*.json")), ids=lambda p: p.stem)
def test_tables_have_one_category_per_line(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line for line in lines if '"name":' in line]
    assert len(names) == len(catalog.read_table(path).categories)


# ------------------------------------------------------------------------------ registration


def test_registering_twice_changes_nothing() -> None:
    catalog.register_tables("root")
    loader = DatasetCatalog["camvid_sem_seg_val"]
    metadata = MetadataCatalog.get("camvid_sem_seg_val")
    catalog.register_tables("root")
    importlib.reload(catalog).register_tables("root")
    assert DatasetCatalog["camvid_sem_seg_val"] is loader
    assert MetadataCatalog.get("camvid_sem_seg_val") is metadata


def test_registering_with_another_root_replaces_the_first() -> None:
    catalog.register_tables("here")
    catalog.register_tables("there")
    root = MetadataCatalog.get("camvid_sem_seg_val").image_root
    assert root == str(Path("there/camvid/images/val"))


def test_the_datasets_root_is_detectron2s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    assert catalog.datasets_root() == Path.home() / "data"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert catalog.datasets_root() == Path("datasets")


def test_a_name_registered_by_other_code_is_an_error(tmp_path: Path) -> None:
    DatasetCatalog.register("own", lambda: [])
    with pytest.raises(ValueError, match=r"'own'.*by other code.*another name"):
        catalog.register_table(write_table(tmp_path))


def test_two_tables_with_the_same_dataset_are_an_error(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    catalog.register_table(write_table(tmp_path / "a"), root=tmp_path / "a")
    with pytest.raises(ValueError, match=r"already registered by .*a.own\.json"):
        catalog.register_table(write_table(tmp_path / "b"), root=tmp_path / "b")


def test_a_copy_of_a_table_can_replace_it(tmp_path: Path) -> None:
    touch(tmp_path / "own/i/1.png", tmp_path / "own/l/1.png")
    table = write_table(tmp_path)
    catalog.register_table(table, root=tmp_path)
    records = DatasetCatalog.get("own")
    copy_table(table, tmp_path / "copy" / "own.json")
    table.unlink()
    catalog.register_table(tmp_path / "copy" / "own.json")
    assert DatasetCatalog.get("own") == records


def test_a_table_is_enough_to_add_a_dataset(tmp_path: Path) -> None:
    touch(tmp_path / "own/i/1.png", tmp_path / "own/l/1.png")
    catalog.register_table(write_table(tmp_path), root=tmp_path)
    assert DatasetCatalog.get("own") == [
        {
            "file_name": str(tmp_path / "own/i/1.png"),
            "sem_seg_file_name": str(tmp_path / "own/l/1.png"),
        }
    ]
    assert MetadataCatalog.get("own").stuff_classes == ["cat", "dog"]


def test_missing_files_are_an_error_on_loading_that_names_the_fix(
    tmp_path: Path,
) -> None:
    catalog.register_tables(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        DatasetCatalog.get("camvid_panoptic_val")
    assert str(tmp_path / "camvid") in str(error.value)
    assert "DETECTRON2_DATASETS" in str(error.value)
    assert "datasets/prepare_camvid.py --source" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": None}, "the key 'categories' is missing"),
        ({"colours": 1}, "unexpected keyword argument 'colours'"),
        ({"datasets": None}, "'datasets' is missing"),
        ({"categories": [{"name": "a", "colour": []}]}, "'colour'"),
        ({"categories": [{"name": "a", "id": 1}, {"name": "b", "id": 1}]}, "a unique `id`"),
        ({"categories": [{"name": "a", "id": 1}, {"name": "b"}]}, "a unique `id`"),
        ({"categories": [{"name": n, "source_id": 1} for n in "ab"]}, "share a `source_id`"),
        ({"categories": [{"name": "a", "color": [1, 2, 3]}, {"name": "b"}]}, "`color`"),
        ({"datasets": {"own": {"kind": "pan", "image_root": ""}}}, "'pan', expected sem_seg or"),
        ({"datasets": {"own": {"kind": "sem_seg", "image_root": ""}}}, "needs.*sem_seg_root"),
        (
            {
                "datasets": {
                    "own": {
                        "kind": "panoptic",
                        "image_root": "",
                        "panoptic_root": "",
                        "panoptic_json": "",
                    }
                }
            },
            "needs category ids",
        ),
    ],
)
def test_a_broken_table_is_an_error_that_names_the_table(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_table(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        catalog.read_table(path)
    assert str(path) in str(error.value)


# -------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("generator", ["os", "mask_former.data.shapes.writer", "shapes"])
def test_a_custom_table_with_a_generator_is_refused_and_nothing_is_imported(
    tmp_path: Path, generator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib, "import_module", None)
    path = write_table(tmp_path, generator=generator)
    with pytest.raises(ValueError, match=rf"own\.json: found a `generator`, '{generator}'.*Remove"):
        catalog.register_table(path)
    assert "own" not in DatasetCatalog


def test_generators_of_the_packages_tables_are_functions_of_the_package(
    tmp_path: Path,
) -> None:
    catalog.register_tables(tmp_path)
    named = {catalog.read_table(path).generator for path in catalog.TABLES.glob("*.json")} - {None}
    assert named == catalog._GENERATORS.keys() == {"shapes"}
    writer.generate(tmp_path / "shapes_panoptic", writer.Settings(num_train=1, num_val=1))
    assert len(DatasetCatalog.get("shapes_panoptic_val")) == 1


# ----------------------------------------------------------------------------------- loaders


def test_images_and_labels_are_paired_by_stem_with_any_suffix(tmp_path: Path) -> None:
    images, labels = tmp_path / "i", tmp_path / "l"
    touch(images / "b.jpg", images / "a.JPEG", images / ".DS_Store", images / "list.txt")
    touch(labels / "a.tif", labels / "b.png")
    records = load_sem_seg(images, labels)
    assert [Path(r["file_name"]).name for r in records] == ["a.JPEG", "b.jpg"]
    assert [Path(r["sem_seg_file_name"]).name for r in records] == ["a.tif", "b.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["i/a.jpg", "i/b.jpg", "l/a.png"], r"b\.jpg has no partner 'b\.\*' in .*l "),
        (["i/a.jpg", "l/a.png", "l/c.png"], r"c\.png has no partner 'c\.\*' in .*i "),
        (["i/a.txt", "l/a.png"], "i has no file"),
    ],
)
def test_an_image_without_label_or_a_label_without_image_is_an_error(
    tmp_path: Path, files: list[str], message: str
) -> None:
    touch(*(tmp_path / name for name in files))
    with pytest.raises(FileNotFoundError, match=message):
        load_sem_seg(tmp_path / "i", tmp_path / "l")


def test_two_images_with_the_same_stem_are_an_error(tmp_path: Path) -> None:
    touch(tmp_path / "i/a.jpg", tmp_path / "i/a.png", tmp_path / "l/a.png")
    with pytest.raises(ValueError, match="share a stem"):
        load_sem_seg(tmp_path / "i", tmp_path / "l")


def panoptic_tree(folder: Path) -> dict[str, Any]:
    """Return the JSON of one image with segments of the categories 5 (stuff) and 9 (a thing)."""
    segments = [
        {"id": 3, "category_id": 9, "area": 7, "bbox": [0, 1, 2, 3], "iscrowd": 1},
        {"id": 8, "category_id": 5},
    ]
    content = {
        "images": [{"id": 42, "file_name": "a.webp", "height": 4, "width": 6}],
        "annotations": [{"image_id": 42, "file_name": "a.png", "segments_info": segments}],
    }
    touch(folder / "i/a.webp", folder / "p/a.png", folder / "s/a.png")
    return content


def load_tree(folder: Path, content: dict[str, Any], **arguments: Any) -> list[dict[str, Any]]:
    (folder / "p.json").write_text(json.dumps(content))
    maps = {"contiguous_ids": {5: 0, 9: 1}, "thing_ids": [9], **arguments}
    return load_panoptic(folder / "i", folder / "p", folder / "p.json", **maps)


def test_panoptic_records_are_detectron2s_standard_dicts(tmp_path: Path) -> None:
    content = panoptic_tree(tmp_path)
    thing = {"id": 3, "category_id": 1, "isthing": True, "iscrowd": 1, "area": 7}
    assert load_tree(tmp_path, content, sem_seg_root=tmp_path / "s") == [
        {
            "file_name": str(tmp_path / "i/a.webp"),
            "image_id": 42,
            "height": 4,
            "width": 6,
            "pan_seg_file_name": str(tmp_path / "p/a.png"),
            "sem_seg_file_name": str(tmp_path / "s/a.png"),
            "segments_info": [
                {**thing, "bbox": [0, 1, 2, 3]},
                {"id": 8, "category_id": 0, "isthing": False, "iscrowd": 0},
            ],
        }
    ]
    assert "sem_seg_file_name" not in load_tree(tmp_path, content)[0]


def test_an_image_missing_in_the_json_is_found_on_disk(tmp_path: Path) -> None:
    content = panoptic_tree(tmp_path)
    content["images"][0]["id"] = 43
    record = load_tree(tmp_path, content)[0]
    assert record["file_name"] == str(tmp_path / "i/a.webp")
    assert "height" not in record


@pytest.mark.parametrize("name", ["i/a.webp", "p/a.png", "s/a.png"])
def test_files_named_in_the_json_must_exist(tmp_path: Path, name: str) -> None:
    content = panoptic_tree(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{name}.*p\.json.*42"):
        load_tree(tmp_path, content, sem_seg_root=tmp_path / "s")


def test_an_unknown_category_is_an_error_that_names_json_image_and_segment(tmp_path: Path) -> None:
    content = panoptic_tree(tmp_path)
    content["annotations"][0]["segments_info"][1]["category_id"] = 6
    with pytest.raises(ValueError, match=r"p\.json: a\.webp: segment 8 .*category_id 6.*\[5, 9\]"):
        load_tree(tmp_path, content)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"images": [1]}', '{"images": [], "annotations": []}']
)
def test_a_json_of_another_format_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=r"p\.json"):
        load_panoptic(tmp_path, tmp_path, tmp_path / "p.json", contiguous_ids={}, thing_ids=[])


def test_records_of_real_coco_annotations_equal_detectron2s() -> None:
    sample = SHARED / "data" / "coco_panoptic_sample"
    if not sample.exists():
        pytest.skip("needs ../shared/data/coco_panoptic_sample")
    images, panoptic = sample / "input_images", sample / "panoptic_examples"
    meta = builtin_meta._get_builtin_metadata("coco_panoptic_standard")
    things = meta["thing_dataset_id_to_contiguous_id"]
    ids = {**meta["stuff_dataset_id_to_contiguous_id"], **things}
    json_file = sample / "panoptic_examples.json"
    found = load_panoptic(images, panoptic, json_file, contiguous_ids=ids, thing_ids=things)
    expected = coco_panoptic.load_coco_panoptic_json(
        str(json_file), str(images), str(panoptic), meta
    )
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        assert {k: v for k, v in ours.items() if k not in ("height", "width")} == theirs


def test_ade20k_panoptic_records_name_the_semantic_label_map(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    annotation = {"image_id": "ADE_val_1", "file_name": "ADE_val_1.png"}
    annotation["segments_info"] = [{"id": 1, "category_id": 7}, {"id": 2, "category_id": 0}]
    image = {"id": "ADE_val_1", "file_name": "ADE_val_1.jpg", "height": 1, "width": 1}
    label_map = root / "annotations_detectron2/validation/ADE_val_1.png"
    touch(root / "images/validation/ADE_val_1.jpg", label_map)
    touch(root / "ade20k_panoptic_val/ADE_val_1.png")
    content = {"images": [image], "annotations": [annotation]}
    (root / "ade20k_panoptic_val.json").write_text(json.dumps(content))
    catalog.register_tables(tmp_path)
    record = DatasetCatalog.get("ade20k_panoptic_val")[0]
    assert record["sem_seg_file_name"] == str(label_map)
    assert [s["isthing"] for s in record["segments_info"]] == [True, False]
