"""A folder of results: its files, and runs that are interrupted, continued or distributed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from mask_former.results import FORMATS, ResultWriter, from_detectron2, load_npz, merge_records
from tests.helpers.scenes import CATEGORY_IDS, CLASSES, predict, scene

COCO = ["panoptic-coco", "instances-coco"]


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    found = {}
    for number in range(5):
        image, ids, names = scene(number)
        classes = {i: CLASSES.names.index(name) for i, name in names.items()}
        outputs = predict(ids, classes, rng)
        found[f"street{number}"] = from_detectron2(outputs, image, CLASSES)
    return found


def files_of(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "records" not in path.parts
    }


def write(folder, results, formats=COCO, **options):
    with ResultWriter(folder, formats, category_ids=CATEGORY_IDS, **options) as writer:
        for name, result in results.items():
            writer.write(result, name)


def test_each_format_has_its_own_files(results, tmp_path):
    with ResultWriter(tmp_path, FORMATS) as writer:
        paths = writer.write(results["street0"], "street0")
        assert not (tmp_path / "panoptic.json").exists()  # not before it is complete
    written = {path.relative_to(tmp_path).as_posix() for path in paths}
    assert written == {
        "overlay/street0.png",
        "semantic/street0.png",
        "panoptic/street0.png",
        "npz/street0.npz",
    }
    jsons = {"panoptic.json", "instances.json", "categories.json"}
    assert set(files_of(tmp_path)) == written | jsons


def test_each_kind_is_drawn_into_its_own_file(results, tmp_path):
    result = results["street0"]
    with ResultWriter(tmp_path, ["overlay", "npz"], kinds=["semantic", "panoptic"]) as writer:
        writer.write(result, "a/street0")
    for kind in ("semantic", "panoptic"):
        drawing = np.asarray(Image.open(tmp_path / f"overlay/a/street0_{kind}.png"))
        assert (drawing == result.draw(kind)).all()
    assert load_npz(tmp_path / "npz/a/street0.npz").kinds == ["panoptic", "semantic"]


def test_overlays_are_drawn_with_the_given_options(results, tmp_path):
    options = {"opacity": 0.2, "legend": True, "scale": 2}
    with ResultWriter(tmp_path, ["overlay"], drawing=options) as writer:
        (path,) = writer.write(results["street0"], "street0")
    expected = results["street0"].draw("panoptic", **options)
    assert (np.asarray(Image.open(path)) == expected).all()


def test_a_killed_run_continues_and_ends_like_an_uninterrupted_one(results, tmp_path):
    write(tmp_path / "complete", results)
    names = list(results)
    stopped = ResultWriter(tmp_path / "stopped", COCO, category_ids=CATEGORY_IDS)
    for name in names[:3]:
        stopped.write(results[name], name)
    # The run was killed: the writer is not closed, and the last line is incomplete.
    for path in (tmp_path / "stopped/records").glob("*.jsonl"):
        path.write_bytes(path.read_bytes()[:-7])
    with ResultWriter(tmp_path / "stopped", COCO, category_ids=CATEGORY_IDS) as writer:
        assert [writer.has(name) for name in names] == [True, True, False, False, False]
        for name in names:
            if not writer.has(name):
                writer.write(results[name], name)
    assert files_of(tmp_path / "stopped") == files_of(tmp_path / "complete")


def test_an_image_is_done_if_all_its_files_exist(results, tmp_path):
    write(tmp_path, {"street0": results["street0"]}, ["npz"])
    assert ResultWriter(tmp_path, ["npz"]).has("street0")
    assert not ResultWriter(tmp_path, ["npz"]).has("street1")
    assert not ResultWriter(tmp_path, ["npz", "overlay"]).has("street0")
    assert not ResultWriter(tmp_path, ["npz", "instances-coco"]).has("street0")


def test_several_processes_write_the_same_files_as_one(results, tmp_path):
    write(tmp_path / "one", results)
    for rank in range(3):
        mine = dict(list(results.items())[rank::3])
        write(tmp_path / "three", mine, part=rank)
    assert not (tmp_path / "three/panoptic.json").exists()
    merged = merge_records(tmp_path / "three")
    assert {path.name for path in merged} == {"panoptic.json", "instances.json"}
    assert files_of(tmp_path / "three") == files_of(tmp_path / "one")


def test_a_later_result_of_an_image_replaces_the_earlier_one(results, tmp_path):
    write(tmp_path / "a", {"street0": results["street0"]})
    write(tmp_path / "a", {"street0": results["street1"]})
    write(tmp_path / "b", {"street0": results["street1"]})
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_a_later_run_can_add_images(results, tmp_path):
    for name, result in results.items():
        write(tmp_path / "a", {name: result})
    write(tmp_path / "b", results)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_the_records_are_never_all_in_memory(results, tmp_path, monkeypatch):
    """Merging into the JSON files reads one record at a time."""
    from mask_former.results import records

    write(tmp_path, results)
    alive, most = 0, 0

    class Counted(list):
        def __init__(self, values):
            nonlocal alive, most
            super().__init__(values)
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    loads = json.loads
    monkeypatch.setattr(records.json, "loads", lambda line: [None, Counted(loads(line)[1])])
    merge_records(tmp_path, ["instances-coco"])
    assert 1 <= most <= 2


# Errors


def test_the_error_for_an_unknown_format_or_kind_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match="no format 'coco'; expected one of overlay, semantic-png"):
        ResultWriter(tmp_path, ["coco"])
    with pytest.raises(ValueError, match="no kind of result 'instances'; expected one of panoptic"):
        ResultWriter(tmp_path, ["npz"], kinds=["instances"])


@pytest.mark.parametrize(
    "format_name, kind",
    [("semantic-png", "semantic"), ("panoptic-coco", "panoptic"), ("instances-coco", "instance")],
)
def test_a_format_without_its_kind_of_result_is_an_error(results, tmp_path, format_name, kind):
    from dataclasses import replace

    field = {"instance": "instances"}.get(kind, kind)
    result = replace(results["street0"], **{field: None})
    with pytest.raises(ValueError, match=f"{format_name}' needs a {kind} result; the image has"):
        ResultWriter(tmp_path, [format_name]).write(result, "a")


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b", ""])
def test_names_outside_the_folder_are_refused(results, tmp_path, name):
    with pytest.raises(ValueError, match="is empty or lies outside the folder"):
        ResultWriter(tmp_path / "x", ["npz"]).write(results["street0"], name)


def test_a_folder_with_other_categories_is_refused(results, tmp_path):
    write(tmp_path, {"street0": results["street0"]})
    with pytest.raises(ValueError, match=r"categories\.json has other categories"):
        ResultWriter(tmp_path, COCO).write(results["street1"], "street1")


@pytest.mark.parametrize(
    "line", [b"{}", b"5", b"[5, []]", b'["a"', b"\xff", b"[" * 100_000, b'["a", {}]']
)
def test_records_of_others_are_refused_by_the_name_of_their_file(tmp_path, line):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "instances-coco.jsonl").write_bytes(line + b"\n")
    with pytest.raises(ValueError, match=r"instances-coco\.jsonl"):
        merge_records(tmp_path, ["instances-coco"])
