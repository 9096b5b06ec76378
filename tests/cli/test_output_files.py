"""Every result gets its own file, and no input is ever replaced."""

from __future__ import annotations

from pathlib import Path

import pytest

from mask_former.cli.output_files import (
    DRAWN_IMAGE_SUFFIXES,
    DRAWN_VIDEO_SUFFIXES,
    check_apart,
    plan_outputs,
    relative_names,
)

ONE = ["semantic"]


def plan(inputs, output, kinds=ONE, suffixes=DRAWN_IMAGE_SUFFIXES):
    """List the output files of each input, by kind of result."""
    plan = plan_outputs([Path(one) for one in inputs], kinds, str(output), suffixes)
    return [plan.files(name) for name in plan.names]


def test_the_folder_is_created_and_outputs_have_the_names_of_the_inputs(tmp_path):
    outputs = plan(["in/a.jpg", "b.tif"], tmp_path / "new" / "out")
    assert outputs == [{"semantic": tmp_path / "new" / "out" / f"{name}.png"} for name in "ab"]
    assert (tmp_path / "new" / "out").is_dir()


def test_several_kinds_are_distinguished_by_their_names(tmp_path):
    outputs = plan(["a.jpg"], tmp_path, kinds=["panoptic", "semantic"])
    names = {kind: file.name for kind, file in outputs[0].items()}
    assert names == {"panoptic": "a_panoptic.png", "semantic": "a_semantic.png"}


def test_inputs_of_one_name_get_outputs_of_different_names(tmp_path):
    outputs = plan(["1/a.jpg", "2/a.jpg", "a.png", "A.gif", "a_2.jpg"], tmp_path)
    names = [output["semantic"].name for output in outputs]
    assert names[0] == "a.png"
    assert len({name.lower() for name in names}) == 5


def test_the_output_of_one_input_may_be_a_file(tmp_path):
    file = tmp_path / "new" / "x.JPG"
    assert plan(["a.png"], file) == [{"semantic": file}] and file.parent.is_dir()
    video = plan(["a.mov"], tmp_path / "x.avi", suffixes=DRAWN_VIDEO_SUFFIXES)
    assert video == [{"semantic": tmp_path / "x.avi"}]


def test_a_folder_may_be_named_like_a_file(tmp_path):
    (tmp_path / "x.jpg").mkdir()
    assert plan(["a.png"], tmp_path / "x.jpg") == [{"semantic": tmp_path / "x.jpg" / "a.png"}]


@pytest.mark.parametrize(
    "inputs, kinds", [(["a.jpg", "b.jpg"], ONE), (["a.jpg"], ["panoptic", "semantic"])]
)
def test_one_file_for_several_results_is_refused(tmp_path, inputs, kinds):
    with pytest.raises(ValueError, match=r"x\.jpg is one file, but .* give a folder"):
        plan(inputs, tmp_path / "x.jpg", kinds)


@pytest.mark.parametrize("name", ["x.mp4", "notes.txt"])
def test_an_output_that_is_neither_a_folder_nor_an_image_is_refused(tmp_path, name):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=f"{name} is neither a folder nor a file"):
        plan(["a.jpg"], tmp_path / name)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("output", ["", "a.png", "sub/../a.png"])
def test_an_input_is_never_replaced(tmp_path, monkeypatch, output):
    (tmp_path / "a.png").write_bytes(b"")
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    for file in ("a.png", tmp_path / "a.png"):
        with pytest.raises(ValueError, match=r"would replace the input .*a\.png"):
            plan([file], tmp_path / output)


# Folders of saved results


def test_names_are_the_paths_within_the_folder():
    files = [Path("in", name) for name in ("a.jpg", "sub/a.png", "sub/b.c.tif")]
    assert list(relative_names(files, Path("in"))) == ["a", "sub/a", "sub/b.c"]


@pytest.mark.parametrize("other", ["a.png", "A.jpg"])
def test_files_that_would_share_a_name_are_refused(other):
    with pytest.raises(ValueError, match=r"in/a\.jpg and in/.* would both be saved as"):
        list(relative_names([Path("in/a.jpg"), Path("in", other)], Path("in")))


def test_inputs_may_be_next_to_the_folders_of_results_but_not_in_them(tmp_path):
    check_apart([tmp_path / "a.png", tmp_path.parent / "b.png"], tmp_path)
    for inside in (tmp_path / "semantic" / "a.png", tmp_path / "x" / ".." / "semantic" / "b.png"):
        with pytest.raises(ValueError, match=r"The input .* lies in a subfolder of --output"):
            check_apart([inside], tmp_path)


def test_a_file_instead_of_a_folder_of_results_is_refused(tmp_path):
    (tmp_path / "notes").write_text("mine")
    for name in ("notes", "x.png"):
        with pytest.raises(ValueError, match=f"{name} is a file; all formats but overlay need"):
            check_apart([], tmp_path / name)
