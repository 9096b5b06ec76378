"""Checkpoints of every format are read; files that are broken or would run code are refused."""

import io
import json
import os
import pickle
import pickletools
import tarfile
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mask_former.utils.weight_files import (
    as_tensors,
    read_checkpoint,
    read_extras,
    write_weights,
)

WEIGHTS = {
    "backbone.weight": torch.arange(6, dtype=torch.float32).view(2, 3),
    "backbone.steps": torch.tensor(7),
    "head.bias": torch.tensor([0.5, -2.0], dtype=torch.float16),
}
ARRAYS = {name: value.numpy() for name, value in WEIGHTS.items()}


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def with_numpy_path(data, package):
    """Return a pickle of arrays as written by numpy 1 ("numpy.core") or 2 ("numpy._core")."""
    other = b"numpy._core" if package == b"numpy.core" else b"numpy.core"
    return data.replace(other, package)


FILES = {
    "new.pth": torch_bytes(WEIGHTS),
    "old.pth": torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
    "ordered.pth": torch_bytes(OrderedDict(WEIGHTS)),
    "weights.safetensors": save(WEIGHTS),
    **{f"protocol{n}.pkl": pickle.dumps(ARRAYS, protocol=n) for n in (0, 1, 2, 3, 4, 5)},
    "ordered.pkl": pickle.dumps(OrderedDict(ARRAYS)),
    "numpy1.pkl": with_numpy_path(pickle.dumps(ARRAYS, protocol=2), b"numpy.core"),
    "numpy2.pkl": with_numpy_path(pickle.dumps(ARRAYS, protocol=2), b"numpy._core"),
    "scalars.pkl": pickle.dumps({name: np.float32(3) for name in ARRAYS}, protocol=2),
}


@pytest.fixture
def write(tmp_path):
    def write(name, data):
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


# Valid files


@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_returned_under_model(name, write):
    content = read_checkpoint(write(name, FILES[name]))
    assert list(content) == ["model"]
    assert sorted(content["model"]) == sorted(WEIGHTS)
    for key, value in content["model"].items():
        if name == "scalars.pkl":
            assert value == np.float32(3)
            continue
        assert torch.equal(torch.as_tensor(value), WEIGHTS[key])
        assert torch.as_tensor(value).dtype == WEIGHTS[key].dtype


def test_pickles_of_numpy_1_and_2_contain_different_module_paths():
    assert b"numpy.core.multiarray" in FILES["numpy1.pkl"]
    assert b"numpy._core.multiarray" in FILES["numpy2.pkl"]


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_arrays_of_the_newest_protocol_are_read_from_either_numpy(package, write):
    array = (
        b"c%b.numeric\n_frombuffer\n(C\x02\x03\x04cnumpy\ndtype\n(S'u1'\ntR(I2\ntS'C'\ntR" % package
    )
    content = read_checkpoint(write("model.pkl", b"(dS'x'\n" + array + b"s."))
    assert content["model"]["x"].tolist() == [3, 4]


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
def test_other_entries_of_a_checkpoint_are_kept(suffix, write):
    training = {"model": {"weight": 1.5}, "iteration": 9, "optimizer": {"state": {}, "lr": [0.1]}}
    data = torch_bytes(training) if suffix == "pth" else pickle.dumps(training)
    assert read_checkpoint(write(f"model.{suffix}", data)) == training


def test_a_path_may_be_a_string(write):
    assert read_checkpoint(str(write("model.pth", FILES["new.pth"]))).keys() == {"model"}


# Files that would run code


class Payload:
    """An object whose unpickling runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def payload(tmp_path):
    """A checkpoint whose unpickling would create a file, and the path of that file."""
    trace = tmp_path / "trace"
    content = {"model": {"weight": Payload(f"echo > '{trace}'")}}
    pickle.loads(pickle.dumps(content))
    assert trace.exists()  # the payload works
    trace.unlink()
    return content, trace


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model", "model.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(name, protocol, write, payload):
    content, trace = payload
    refused = r"was refused: loading it would run code \(found: \w+\.system\)\. Only tensors,"
    message = "is not a readable checkpoint" if name.endswith("safetensors") else refused
    with pytest.raises(ValueError, match=message):
        read_checkpoint(write(name, pickle.dumps(content, protocol=protocol)))
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_would_run_code_is_refused_and_does_not_run(zipped, write, payload):
    content, trace = payload
    data = torch_bytes(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.pth was refused: .* \(found: \w+\.system\)"):
        read_checkpoint(write("model.pth", data))
    assert not trace.exists()


NESTED = {
    "in a list behind a tensor": lambda evil: {"w": torch.ones(2), "x": [({"y": (evil,)},)]},
    "as a value next to the weights": lambda evil: {"model": {}, "optimizer": evil},
    "in the metadata of a state dict": lambda evil: with_metadata(evil),
    "in a numpy array of objects": lambda evil: {"w": np.array([evil], dtype=object)},
    "as the complete file": lambda evil: evil,
}


def with_metadata(value):
    state = OrderedDict(weight=torch.ones(2))
    state._metadata = {"": value}
    return {"model": state}


@pytest.mark.parametrize("suffix", ["zip.pth", "old.pth", "pkl"])
@pytest.mark.parametrize("where", NESTED)
def test_code_anywhere_in_a_file_is_refused_and_does_not_run(suffix, where, write, payload):
    content, trace = payload
    content = NESTED[where](content["model"]["weight"])
    if suffix == "pkl":
        data = pickle.dumps(content)
    else:
        data = torch_bytes(content, _use_new_zipfile_serialization=suffix == "zip.pth")
    with pytest.raises(ValueError, match="was refused: loading it would run code"):
        read_checkpoint(write(f"model.{suffix}", data))
    assert not trace.exists()


@pytest.mark.parametrize("index", range(5))
def test_each_pickle_of_torchs_old_format_is_read_without_running_code(index, write, payload):
    # magic number, protocol version, system, the object, the keys of the storages
    content, trace = payload
    stream = io.BytesIO(FILES["old.pth"])
    parts = []
    for _ in range(5):
        start = stream.tell()
        for _ in pickletools.genops(stream):
            pass  # read up to the end of the pickle
        parts.append(FILES["old.pth"][start : stream.tell()])
    parts[index] = pickle.dumps(content["model"]["weight"], protocol=2)
    with pytest.raises(ValueError, match=r"was refused: .* \(found: \w+\.system\)"):
        read_checkpoint(write("model.pth", b"".join(parts) + stream.read()))
    assert not trace.exists()


@pytest.mark.filterwarnings("ignore:.*looks like a TorchScript archive")
def test_torchs_tar_format_and_torchscript_programs_are_refused(write, tmp_path, payload):
    content, trace = payload
    with tarfile.open(tmp_path / "tar.pth", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(content["model"]["weight"], protocol=2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "script.pth")
    with pytest.raises(ValueError, match=r"tar\.pth is not a readable checkpoint"):
        read_checkpoint(tmp_path / "tar.pth")
    with pytest.raises(
        ValueError, match=r"script\.pth was refused: .*found: a TorchScript program"
    ):
        read_checkpoint(tmp_path / "script.pth")
    assert not trace.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_a_pickle_with_a_builtin_is_refused_with_its_name(name, write):
    data = b"cbuiltins\n%b\n(S'1'\ntR." % name.encode()
    with pytest.raises(
        ValueError, match=rf"was refused: .* \(found: builtins\.{name}\)\. Only ten"
    ):
        read_checkpoint(write("model.pkl", data))


def test_a_pickled_module_is_refused_with_the_fix(write):
    data = torch_bytes({"model": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"found: torch\.nn.*save it again as a dict of tensors"):
        read_checkpoint(write("model.pth", data))


# Broken files


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "weights.safetensors", "protocol2.pkl"])
def test_a_file_truncated_anywhere_is_refused(name, write):
    data = FILES[name]
    for length in range(0, len(data), max(1, len(data) // 60)):
        with pytest.raises(
            ValueError, match=rf"{name} is not a readable checkpoint: \w.*truncated"
        ):
            read_checkpoint(write(name, data[:length]))


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize(
    "text", ["", "hello world\n", "<html><body>404: Not Found</body></html>", "Ünïcödé", "."]
)
def test_a_file_that_is_not_a_checkpoint_is_refused(suffix, text, write):
    with pytest.raises(ValueError, match=rf"model\.{suffix} is not a readable checkpoint: \w"):
        read_checkpoint(write(f"model.{suffix}", text.encode()))


@pytest.mark.parametrize(
    "name, data",
    [
        ("list.pth", torch_bytes([1, 2])),
        ("list.pkl", pickle.dumps([1, 2])),
    ],
)
def test_a_checkpoint_must_be_a_dict(name, data, write):
    with pytest.raises(ValueError, match=rf"{name} holds a list, not a dict of weights"):
        read_checkpoint(write(name, data))


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.pkl", "nowhere.safetensors", "folder"])
def test_the_error_for_a_missing_file_names_it(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name} \(MODEL\.WEIGHTS\)"):
        read_checkpoint(tmp_path / name)


# Names of the weights, and entries that are not weights


@pytest.mark.parametrize("key", ["model", "state_dict", "model_state"])
def test_weights_under_the_names_of_other_libraries_are_returned_under_model(key, write):
    data = torch_bytes({key: WEIGHTS, "epoch": 3})
    content = read_checkpoint(write("model.pth", data))
    assert content.keys() == {"model", "epoch"} and content["model"].keys() == WEIGHTS.keys()


def test_arrays_and_numbers_become_tensors():
    arrays = {**ARRAYS, "number": np.float32(3)}
    arrays["read only"] = np.frombuffer(b"\x01\x02", np.uint8)
    tensors = as_tensors(arrays, "x.pkl")
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert tensors["number"] == 3 and tensors["read only"].tolist() == [1, 2]


@pytest.mark.parametrize(
    "weights, found",
    [
        ({}, "nothing"),
        ({"epoch": 3, "w": ARRAYS}, "epoch, w"),
        ({1: np.ones(2)}, "1"),
        ({"w": np.array("text")}, "w"),
        ({"w": torch.zeros(2, device="meta")}, "w"),
        ({"w": torch.eye(2).to_sparse()}, "w"),
        ({"w": torch.eye(2).to_sparse_csr()}, "w"),
        ({"w": torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8)}, "w"),
        ({"w": torch.eye(2, dtype=torch.complex64)}, "w"),
        ({"w": torch.eye(2).to(torch.float8_e4m3fn)}, "w"),
        ({1 << 200_000: torch.eye(2)}, "0x10*…"),
    ],
)
def test_the_error_for_a_file_without_weights_names_its_entries(weights, found):
    with pytest.raises(ValueError, match=rf"x\.pth does not hold a state dict: .* found {found}\."):
        as_tensors(weights, "x.pth")


# Writing


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
@pytest.mark.parametrize("names", [None, ["wall, building", "Straße"]])
def test_weights_and_class_names_survive_writing_and_reading(suffix, names, tmp_path):
    path = tmp_path / "new" / f"x{suffix}"
    write_weights(WEIGHTS, path, names)
    content = read_checkpoint(path)
    tensors = as_tensors(content["model"], path)
    assert tensors.keys() == WEIGHTS.keys()
    assert all(torch.equal(tensors[name], WEIGHTS[name]) for name in WEIGHTS)
    assert content.get("class_names") == names
    assert [one.name for one in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pkl"])
def test_inference_data_is_written_with_the_weights(suffix, tmp_path):
    path = tmp_path / f"x{suffix}"
    data = {"config": "MODEL: {}\n", "classes": [{"name": "Straße", "isthing": True}]}
    write_weights(WEIGHTS, path, inference=data)
    assert read_checkpoint(path)["inference"] == data
    extras = read_extras(path)
    assert extras["inference"] == data and "model" not in extras


@pytest.mark.parametrize("name", FILES)
def test_a_file_with_only_weights_has_no_extras(name, write):
    assert read_extras(write(name, FILES[name])) == {}


def test_a_foreign_inference_entry_is_read_without_an_error(write):
    path = write("x.safetensors", save(WEIGHTS, metadata={"inference": "yes"}))
    content = read_checkpoint(path)
    assert content["inference"] == "yes" and content["model"].keys() == WEIGHTS.keys()


def test_another_suffix_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"x\.bin; it must end in \.safetensors, \.pth, \.pkl"):
        write_weights(WEIGHTS, tmp_path / "x.bin")
    assert list(tmp_path.iterdir()) == []


def test_class_names_that_are_not_json_are_an_error(write):
    data = save(WEIGHTS, metadata={"class_names": "[a"})
    with pytest.raises(ValueError, match=r"is not a readable checkpoint"):
        read_checkpoint(write("x.safetensors", data))
    data = save(WEIGHTS, metadata={"class_names": json.dumps(["a"])})
    assert read_checkpoint(write("x.safetensors", data))["class_names"] == ["a"]


def test_names_of_any_type_and_length_are_written_in_a_short_message(tmp_path):
    with pytest.raises(ValueError) as info:
        as_tensors({("a", "b" * 10**6): 1, "c" * 10**6: 2}, "x.pth")
    assert len(str(info.value)) < 500


@pytest.mark.parametrize("names", ["wall", 5, {"a": 1}, ["wall", 5]])
@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
def test_class_names_that_are_not_a_list_of_names_are_refused(names, suffix, write):
    data = {
        "pth": lambda: torch_bytes({"model": WEIGHTS, "class_names": names}),
        "pkl": lambda: pickle.dumps({"model": ARRAYS, "class_names": names}),
        "safetensors": lambda: save(WEIGHTS, metadata={"class_names": json.dumps(names)}),
    }[suffix]()
    with pytest.raises(ValueError, match=rf"x\.{suffix} is not a readable .* a list of names"):
        read_checkpoint(write(f"x.{suffix}", data))


@pytest.mark.parametrize("size", [1, 512, 4096])
def test_no_message_advises_to_load_a_file_without_checks(size, write):
    with pytest.raises(ValueError, match=r"x\.pth is not a readable checkpoint") as info:
        read_checkpoint(write("x.pth", bytes(size)))
    assert "weights_only" not in str(info.value) and "torch.load" not in str(info.value)


def test_a_file_that_grows_when_it_is_read_is_refused(tmp_path):
    (tmp_path / "x.pth").write_bytes(torch_bytes({"model": WEIGHTS, "zeros": bytes(1 << 20)}))
    with (
        zipfile.ZipFile(tmp_path / "x.pth") as old,
        zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for record in old.infolist():
            new.writestr(record.filename, old.read(record))
    assert read_checkpoint(tmp_path / "x.pth")["model"].keys() == WEIGHTS.keys()
    for read in (read_checkpoint, read_extras):
        with pytest.raises(ValueError, match=r"y\.pth was refused: its records claim 1\d+ bytes"):
            read(tmp_path / "y.pth")
