"""Config files and KEY VALUE pairs become a checked config; mistakes get a helpful message."""

from __future__ import annotations

import logging

import pytest
import torch

from mask_former.config.loading import load_cfg, resolve_device

DEVICE = ["MODEL.DEVICE", "cpu"]


@pytest.fixture
def write(tmp_path):
    """A function that writes a config file and returns its path."""

    def write(content, name="x.yaml"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return write


@pytest.fixture
def messages(caplog, monkeypatch):
    """A function that returns the log messages about the device."""
    monkeypatch.setattr(logging.getLogger("mask_former"), "propagate", True)
    caplog.set_level(logging.INFO, logger="mask_former")
    return lambda: [record.message for record in caplog.records if "DEVICE" in record.message]


def with_gpu(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)


# The device


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_without_a_gpu_the_device_becomes_the_cpu_with_one_line_in_the_log(
    cfg, monkeypatch, messages, device
):
    with_gpu(monkeypatch, False)
    cfg.MODEL.DEVICE = device
    cfg.freeze()
    resolved = resolve_device(cfg)
    assert resolved.MODEL.DEVICE == "cpu"
    assert device == cfg.MODEL.DEVICE
    assert resolved.is_frozen() and resolve_device(resolved) is resolved
    assert messages() == [f"MODEL.DEVICE is {device!r}, but there is no GPU: using the CPU."]


@pytest.mark.parametrize("device, available", [("cuda", True), ("cpu", False), ("cpu", True)])
def test_an_available_device_is_kept(cfg, monkeypatch, messages, device, available):
    with_gpu(monkeypatch, available)
    cfg.MODEL.DEVICE = device
    assert resolve_device(cfg) is cfg
    assert (cfg.MODEL.DEVICE, messages()) == (device, [])


def test_loading_a_config_does_not_change_its_device(monkeypatch, messages):
    with_gpu(monkeypatch, False)
    assert load_cfg("").MODEL.DEVICE == "cuda"
    assert messages() == []


# Precedence


def test_key_value_pairs_win_over_the_file_and_the_file_over_its_bases(write):
    write("SEED: 1\nSOLVER: {MAX_ITER: 1, BASE_LR: 1.0, GAMMA: 1.0}\nVERSION: 2\n", "base.yaml")
    middle = "_BASE_: base.yaml\nSOLVER: {MAX_ITER: 2, BASE_LR: 2.0}\n"
    write(middle, "middle.yaml")
    top = write("_BASE_: middle.yaml\nSOLVER: {MAX_ITER: 3}\n")
    cfg = load_cfg(top, [*DEVICE, "SEED", "4"])
    assert (cfg.SEED, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR, cfg.SOLVER.GAMMA) == (4, 3, 2, 1)


def test_a_loaded_config_is_frozen():
    with pytest.raises(AttributeError):
        load_cfg("", DEVICE).SEED = 3


def test_values_are_parsed_as_literals_of_their_keys_type():
    opts = ["INPUT.MIN_SIZE_TRAIN", "(64, 96)", "SOLVER.BASE_LR", "1e-3", "MODEL.WEIGHTS", "a.pth"]
    cfg = load_cfg("", [*DEVICE, *opts])
    assert cfg.INPUT.MIN_SIZE_TRAIN == (64, 96) and cfg.SOLVER.BASE_LR == 1e-3
    assert cfg.MODEL.WEIGHTS == "a.pth"


# Mistakes


@pytest.mark.parametrize(
    "key, near",
    [
        ("SOLVER.BASE_LRR", "SOLVER.BASE_LR"),
        ("solver.max_iter", "SOLVER.MAX_ITER"),
        ("MODEL.MASK_FORMER.NUM_QUERIES", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"),
        ("SEED.FOO", "SEED"),
    ],
)
def test_an_unknown_key_on_the_command_line_is_a_key_error_with_similar_names(key, near):
    with pytest.raises(KeyError, match=f"there is no config key {key}; did you mean.*{near}"):
        load_cfg("", [*DEVICE, key, "1"])


def test_an_unknown_key_in_a_file_is_a_key_error_with_the_file_and_similar_names(write):
    path = write("MODEL: {MASK_FORMER: {NUM_QUERIES: 5}}\nVERSION: 2\n")
    with pytest.raises(KeyError) as caught:
        load_cfg(path, DEVICE)
    for text in (path, "MODEL.MASK_FORMER.NUM_QUERIES", "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES"):
        assert text in caught.value.args[0]


def test_a_key_without_similar_names_is_a_key_error_too():
    with pytest.raises(KeyError, match="there is no config key QQQQQQ; "):
        load_cfg("", [*DEVICE, "QQQQQQ", "1"])


@pytest.mark.parametrize("key, value", [("SOLVER.MAX_ITER", "soon"), ("MODEL", "none")])
def test_a_value_of_the_wrong_type_is_a_value_error_that_names_the_key(key, value, write):
    with pytest.raises(ValueError, match=f"(?s){key} {value}: .*{key}") as caught:
        load_cfg("", [*DEVICE, key, value])
    assert len(str(caught.value)) < 500
    *groups, name = key.split(".")
    path = write(
        "".join(f"{group}: {{" for group in groups) + f"{name}: {value}" + "}" * len(groups)
    )
    with pytest.raises(ValueError, match=f"(?s)x.yaml: .*{key}"):
        load_cfg(path, DEVICE)


@pytest.mark.parametrize("opts", [["SEED"], ["SEED", "1", "--resume"]])
def test_an_odd_number_of_words_is_a_value_error_that_shows_them(opts):
    with pytest.raises(ValueError, match=f"KEY VALUE pairs, got {len(opts)} words: SEED"):
        load_cfg("", opts)


@pytest.mark.parametrize(
    "content, found",
    [
        ("- SEED\n- 1\n", r"holds list.*SEED"),
        ("just text", "holds str 'just text'"),
        ("", "holds NoneType"),
        ("7", "holds int '7'"),
        ("MODEL: [1,", "is not plain YAML: .*"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\xff", "is not plain YAML: .*"),
        (b"\xff\xfe\x00", "is not plain YAML: .*"),
        ("SEED: !!python/object/apply:os.getcwd []", "is not plain YAML: .*python/object"),
    ],
)
def test_a_file_that_is_not_a_yaml_mapping_is_a_value_error_that_names_it(write, content, found):
    path = write(content, "wrong.yaml")
    with pytest.raises(ValueError, match=f"(?s)config file {path} {found}"):
        load_cfg(path, DEVICE)
    # The same if it is the base of another file.
    with pytest.raises(ValueError, match=f"(?s)config file {path} {found}"):
        load_cfg(write("_BASE_: wrong.yaml\n"), DEVICE)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    path = str(tmp_path / "none.yaml")
    with pytest.raises(FileNotFoundError, match=f"no config file {path} .--config-file"):
        load_cfg(path, DEVICE)


@pytest.mark.parametrize("bases", ["none.yaml", "[there.yaml, none.yaml]"])
def test_a_missing_base_is_an_error_that_names_both_files(write, tmp_path, bases):
    write("SEED: 1\n", "there.yaml")
    path = write(f"_BASE_: {bases}\n")
    expected = f"no config file {tmp_path / 'none.yaml'} ._BASE_ of {path}"
    with pytest.raises(FileNotFoundError, match=expected):
        load_cfg(path, DEVICE)


def test_a_config_with_an_invalid_value_is_refused():
    with pytest.raises(ValueError, match="OBJECT_MASK_THRESHOLD is 2"):
        load_cfg("", [*DEVICE, "MODEL.MASK_FORMER.TEST.OBJECT_MASK_THRESHOLD", "2.0"])


@pytest.mark.parametrize("base", ["5", "", "[1]", "{a: b}", "['']", "[[x.yaml]]"])
def test_a_base_that_is_not_the_name_of_a_file_is_refused_in_words(write, base):
    path = write(f"_BASE_: {base}\n")
    with pytest.raises(ValueError, match=rf"config file {path}: _BASE_ is .*, expected the name"):
        load_cfg(path, DEVICE)


def test_bases_that_lead_in_a_circle_are_refused(write):
    write("_BASE_: x.yaml\n", "other.yaml")
    with pytest.raises(ValueError, match=r"x\.yaml was refused: its _BASE_ leads back to"):
        load_cfg(write("_BASE_: other.yaml\n"), DEVICE)


def test_a_base_that_is_named_twice_is_refused(write):
    write("SEED: 1\n", "base.yaml")
    with pytest.raises(ValueError, match=r"x\.yaml was refused: _BASE_ names a file twice"):
        load_cfg(write("_BASE_: [base.yaml, base.yaml]\n"), DEVICE)


def test_bases_that_double_with_each_level_are_refused(write):
    for level in range(20):
        for side in "ab":
            write(f"_BASE_: [a{level}.yaml, b{level}.yaml]\n", f"{side}{level + 1}.yaml")
    for name in ("a0.yaml", "b0.yaml"):
        write("SEED: 1\n", name)
    with pytest.raises(ValueError, match=r"x\.yaml was refused: .* more than 100 files"):
        load_cfg(write("_BASE_: [a20.yaml, b20.yaml]\n"), DEVICE)


def test_two_bases_may_share_one(write):
    write("SEED: 3\nVERSION: 2\n", "root.yaml")
    for name in ("left", "right"):
        write("_BASE_: root.yaml\n", f"{name}.yaml")
    assert load_cfg(write("_BASE_: [left.yaml, right.yaml]\n"), DEVICE).SEED == 3


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("MODEL.MASK_FORMER.NHEADS", "0", "1 or more"),
        ("MODEL.MASK_FORMER.HIDDEN_DIM", "-256", "1 or more"),
        ("MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS", "-1", "0 or more"),
        ("MODEL.MASK_FORMER.DEC_LAYERS", "100000000", "at most 1000"),
        ("MODEL.MASK_FORMER.TRAIN_NUM_POINTS", "1000000000000", "at most 1048576"),
    ],
)
def test_sizes_of_a_model_are_checked_before_it_is_built(key, value, expected):
    with pytest.raises(ValueError, match=f"{key} is {value}; expected {expected}"):
        load_cfg("", [*DEVICE, key, value])


@pytest.mark.parametrize(
    "key",
    [
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES",
        "MODEL.MASK_FORMER.SIZE_DIVISIBILITY",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES",
    ],
)
def test_a_size_that_no_memory_holds_is_a_mistake_in_the_config(key):
    with pytest.raises(ValueError, match=rf"{key} is 1000000000; expected at most 65536"):
        load_cfg("", [*DEVICE, key, "1000000000"])
