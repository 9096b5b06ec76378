"""Checkpoints of all formats are read; what is broken or would run code is refused."""

import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mask_former.checkpoint import read_checkpoint

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
    """A pickle of arrays as numpy 1 ("numpy.core") or numpy 2 ("numpy._core") writes it."""
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


# What is read


@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_read_under_model(name, write):
    content = read_checkpoint(write(name, FILES[name]))
    assert list(content) == ["model"]
    assert sorted(content["model"]) == sorted(WEIGHTS)
    for key, value in content["model"].items():
        if name == "scalars.pkl":
            assert value == np.float32(3)
            continue
        assert torch.equal(torch.as_tensor(value), WEIGHTS[key])
        assert torch.as_tensor(value).dtype == WEIGHTS[key].dtype


def test_the_two_numpys_are_told_apart_by_the_path_they_write():
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
def test_what_else_a_checkpoint_holds_is_kept(suffix, write):
    training = {"model": {"weight": 1.5}, "iteration": 9, "optimizer": {"state": {}, "lr": [0.1]}}
    data = torch_bytes(training) if suffix == "pth" else pickle.dumps(training)
    assert read_checkpoint(write(f"model.{suffix}", data)) == training


def test_a_path_may_be_a_string(write):
    assert read_checkpoint(str(write("model.pth", FILES["new.pth"]))).keys() == {"model"}


# What would run code


class Payload:
    """Unpickling it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@pytest.fixture
def payload(tmp_path):
    """A checkpoint whose unpickling would make a file, and that file's path."""
    trace = tmp_path / "trace"
    content = {"model": {"weight": Payload(f"echo > '{trace}'")}}
    pickle.loads(pickle.dumps(content))
    assert trace.exists()  # it would indeed
    trace.unlink()
    return content, trace


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
@pytest.mark.parametrize("name", ["model.pkl", "model.pth", "model", "model.safetensors"])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(name, protocol, write, payload):
    content, trace = payload
    with pytest.raises(ValueError, match="is no readable checkpoint"):
        read_checkpoint(write(name, pickle.dumps(content, protocol=protocol)))
    assert not trace.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_that_would_run_code_is_refused_and_does_not_run(zipped, write, payload):
    content, trace = payload
    data = torch_bytes(content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"model\.pth is no readable .* it asks for \w+\.system\."):
        read_checkpoint(write("model.pth", data))
    assert not trace.exists()


@pytest.mark.parametrize("name", ["eval", "getattr", "__import__"])
def test_a_pickle_that_asks_for_a_builtin_is_refused_and_told_so(name, write):
    data = b"cbuiltins\n%b\n(S'1'\ntR." % name.encode()
    with pytest.raises(ValueError, match=rf"it asks for builtins\.{name}\. Only data is read"):
        read_checkpoint(write("model.pkl", data))


def test_a_pickled_module_is_refused_with_what_to_do(write):
    data = torch_bytes({"model": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"it asks for torch\.nn.*saved anew as a dict of tensors"):
        read_checkpoint(write("model.pth", data))


# What is broken


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "weights.safetensors", "protocol2.pkl"])
def test_a_file_cut_anywhere_is_refused(name, write):
    data = FILES[name]
    for length in range(0, len(data), max(1, len(data) // 60)):
        with pytest.raises(ValueError, match=rf"{name} is no readable checkpoint: \w.*truncated"):
            read_checkpoint(write(name, data[:length]))


@pytest.mark.parametrize("suffix", ["pth", "pkl", "safetensors"])
@pytest.mark.parametrize(
    "text", ["", "hello world\n", "<html><body>404: Not Found</body></html>", "Ünïcödé", "."]
)
def test_a_file_that_is_no_checkpoint_is_refused(suffix, text, write):
    with pytest.raises(ValueError, match=rf"model\.{suffix} is no readable checkpoint: \w"):
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
def test_a_missing_file_is_named(name, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError, match=rf"{name} \(MODEL\.WEIGHTS\)"):
        read_checkpoint(tmp_path / name)
