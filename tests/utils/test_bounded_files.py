"""Files of unknown origin are read with bounds on size, depth and time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mask_former.utils.bounded_files import (
    UnreadableFile,
    parse_json,
    parse_yaml,
    read_bytes,
    read_json,
    read_text,
    read_yaml,
)


def test_a_link_to_a_regular_file_is_read(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link") == b"abc"


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "link").symlink_to("pipe")
    for name, kind in (("pipe", "named pipe"), ("link", "named pipe"), ("zero", "device")):
        with pytest.raises(UnreadableFile, match=rf"{name} was refused: it is a {kind}, expected"):
            read_json(tmp_path / name)
    with pytest.raises(UnreadableFile, match=r"it is a folder, expected a regular file"):
        read_yaml(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "missing")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="a file of Linux")
def test_no_more_is_read_than_a_file_claims_to_have():
    assert read_bytes("/proc/self/status") == b""  # files of the kernel may never end


def test_a_file_that_is_larger_than_the_limit_is_not_read(tmp_path):
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(UnreadableFile, match=r"sparse was refused: it has 1099511627776 bytes"):
        read_bytes(tmp_path / "sparse")
    (tmp_path / "small").write_bytes(b"abc")
    assert read_bytes(tmp_path / "small", most=3) == b"abc"
    with pytest.raises(UnreadableFile, match=r"it has 3 bytes, expected at most 2"):
        read_bytes(tmp_path / "small", most=2)


def test_text_is_utf_8(tmp_path):
    (tmp_path / "x").write_bytes("Straße".encode("latin1"))
    with pytest.raises(UnreadableFile, match=r"x is not UTF-8 text .*save it as UTF-8"):
        read_text(tmp_path / "x")
    (tmp_path / "x").write_bytes("Straße".encode("utf-8-sig"))
    assert read_text(tmp_path / "x") == "Straße"


@pytest.mark.parametrize(
    "text, reason",
    [
        ("{", "Expecting property name"),
        ("[" * 60 + "]" * 60, "more than 50 levels"),
        ("[" * 100_000, "more than 50 levels"),
        ('{"a":' * 60 + "1" + "}" * 60, "more than 50 levels"),
        ("9" * 5000, "4300"),
    ],
)
def test_a_json_that_is_damaged_or_too_deep_is_refused(text, reason):
    with pytest.raises(UnreadableFile, match=rf"x\.json is not a JSON file \(.*{reason}"):
        parse_json(text, "x.json")


def test_50_levels_of_json_are_read():
    found = parse_json('{"a":[' * 25 + "1" + "]}" * 25, "x.json")
    for _ in range(25):
        found = found["a"][0]
    assert found == 1


def doubled(count):
    lines = [f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, count)]
    return "a0: &a0 [x, x]\n" + "".join(lines)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("a: 1\na: 2\n", r"the key a occurs twice,.*line 2"),
        ("a: !!python/name:os.system\n", r"python/name"),
        ("a: [" * 60 + "]" * 60, r"more than 50 levels"),
        ("[" * 60_000, r"more than 50 levels"),
        (doubled(30), r"more than 100000 values: use fewer aliases"),
        ("a: &a [*a]\n", r"more than 50 levels"),
        ("a: &a {x: 1}\nb: {<<: *a}\n", r"write out what the merge key << stands for"),
        ("a: " + "x" * 300_000, r"300003 characters"),
        ("? [a]\n: 1\n", r"unhashable"),
        ("a: !!bool x\n", r"x"),
        ("a: !!int ''\n", r""),
        ("a: !!timestamp x\n", r""),
        ("a: 1" + ":1" * 500 + ".0", r"int too large"),
    ],
)
def test_a_yaml_that_is_not_plain_data_of_a_bounded_size_is_refused(text, reason):
    with pytest.raises(UnreadableFile, match=rf"(?s)x\.yaml is not plain YAML: .*{reason}"):
        parse_yaml(text, "x.yaml")


def test_a_yaml_with_a_few_aliases_is_read():
    assert parse_yaml("a: &a [1, 2]\nb: *a\n", "x.yaml") == {"a": [1, 2], "b": [1, 2]}
    assert len(parse_yaml(doubled(10), "x.yaml")) == 10


def test_an_integer_that_python_cannot_show_is_refused():
    for text in (f"0x{'f' * 5000}", ":".join(["1"] * 5000)):
        with pytest.raises(
            UnreadableFile, match=r"x\.yaml is not plain YAML: an integer has \d+ bits"
        ):
            parse_yaml(f"SEED: {text}", "x.yaml")
    assert parse_yaml("SEED: 0x10", "x.yaml") == {"SEED": 16}
