"""Pickles are checked before anything of them is used."""

from __future__ import annotations

import io
import pickle
import struct
from collections import OrderedDict

import numpy as np
import pytest

from mask_former.utils.pickles import RefusedError, check_pickle, read_pickle
from tests.robustness.greedy import NESTED_NAME

OWN_FUNCTION = b"cnumpy.core.multiarray\nscalar\n"


def read(tmp_path, data):
    (tmp_path / "x.pkl").write_bytes(data)
    return read_pickle(tmp_path / "x.pkl")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02}" + NESTED_NAME + b"Ns.",
        b"\x80\x02}(" + NESTED_NAME + b"Nu.",
        b"(" + NESTED_NAME + b"Nd.",
        b"\x80\x04\x8f(" + NESTED_NAME + b"\x90.",
        b"\x80\x04(" + NESTED_NAME + b"\x91.",
    ],
    ids=["an item", "items", "a dict", "a set", "a frozen set"],
)
def test_a_key_whose_hash_never_ends_is_refused(data, tmp_path):
    for use in (lambda: read(tmp_path, data), lambda: check_pickle(io.BytesIO(data))):
        with pytest.raises(RefusedError, match="a tuple of tuples as a key"):
            use()


def test_tuples_that_are_not_keys_may_be_nested(tmp_path):
    content = {"a": ((1, (2,)), 3), ("b", 1): [((),)]}
    assert read(tmp_path, pickle.dumps(content)) == content


def test_a_large_number_of_a_memo_takes_no_memory(tmp_path):
    data = b"\x80\x02}r" + struct.pack("<I", 2**32 - 1) + b"."
    assert read(tmp_path, data) == {}


@pytest.mark.parametrize(
    "state", [b"}X\x01\0\0\0aNs", b"N}X\x0c\0\0\0__defaults__)s\x86"], ids=["dict", "slots"]
)
def test_no_function_or_class_is_changed(state, tmp_path):
    for name in (OWN_FUNCTION, b"cnumpy\ndtype\n"):
        data = b"\x80\x02" + name + state + b"b."
        for use in (
            lambda data=data: read(tmp_path, data),
            lambda data=data: check_pickle(io.BytesIO(data)),
        ):
            with pytest.raises(RefusedError, match="it would change a function or class"):
                use()


def test_an_array_without_content_is_refused(tmp_path):
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
    shape = b"\x8a\x08" + (2**40).to_bytes(8, "little") + b"\x85"
    with pytest.raises(RefusedError, match=r"an array of the shape .* without content"):
        read(tmp_path, head + shape + b"U\x01b\x87R.")
    with pytest.raises(pickle.UnpicklingError):  # the class itself is only a name
        read(tmp_path, b"\x80\x02cnumpy\nndarray\n" + shape + b"\x85R.")


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6).reshape(2, 3)),
        np.arange(24).reshape(2, 3, 4).transpose(2, 0, 1),
        np.float64(1.5),
        np.array(7),
        np.arange(3, dtype=">i4"),
        np.array([True, False]),
    ],
)
def test_arrays_of_every_form_and_protocol_are_read(array, protocol, tmp_path):
    data = pickle.dumps(array, protocol)
    found, expected = read(tmp_path, data), pickle.loads(data)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert np.array_equal(found, array)


class _Reduced:
    """An object that is pickled as a call, and a state or items."""

    def __init__(self, *reduced):
        self._reduced = reduced

    def __reduce__(self):
        return self._reduced


def refused(tmp_path, value, match, *, also_of_torch=False):
    data = pickle.dumps(value, 2)
    with pytest.raises(RefusedError, match=match):
        read(tmp_path, data)
    if also_of_torch:
        with pytest.raises(RefusedError, match=match):
            check_pickle(io.BytesIO(data))


@pytest.mark.parametrize(
    "code, state",
    [
        ("V8", (3, "|", None, ("a",), {"a": (np.dtype("O"), 4096)}, 8, 1, 63)),
        ("S8", (3, "|", None, None, None, 2**31 - 1, 1, 0)),
        ("f8", (3, "<", None, None, None, -1, -1, 63)),
    ],
    ids=["a field outside", "another size", "flags of objects"],
)
def test_the_type_of_an_array_is_not_described_by_the_file(code, state, tmp_path):
    dtype = _Reduced(np.dtype, (code, False, True), state)
    refused(tmp_path, dtype, "an array of a type that is not")


def test_an_array_is_not_made_in_the_memory_of_another_one(tmp_path):
    # The first array could be given a new content, which frees that memory.
    dtype = b"cnumpy\ndtype\nX\x02\0\0\0u1K\0K\x01\x87R"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85X\x01\0\0\0b\x87R"
    view = b"cnumpy.core.numeric\n_frombuffer\n(" + array + dtype + b"K\0\x85X\x01\0\0\0CtR."
    scalar = b"cnumpy.core.multiarray\nscalar\n(" + dtype + array + b"tR."
    for data in (view, scalar):
        with pytest.raises(RefusedError, match="an array in the memory of a ndarray"):
            read(tmp_path, b"\x80\x02" + data)


def test_the_methods_of_a_dict_are_not_hidden(tmp_path):
    hidden = _Reduced(OrderedDict, (), {"items": 5}, None, iter({"a": 1}.items()))
    refused(tmp_path, hidden, "it would hide the methods of a dict", also_of_torch=True)
    versions = OrderedDict(a=1)
    versions._metadata = {"": {"version": 2}}
    assert read(tmp_path, pickle.dumps(versions, 2)) == {"a": 1}


def test_the_pairs_of_an_ordered_dict_are_checked_as_keys(tmp_path):
    assert read(tmp_path, pickle.dumps(_Reduced(OrderedDict, ([["a", 1]],)), 2)) == {"a": 1}
    data = b"\x80\x02ccollections\nOrderedDict\n]" + NESTED_NAME + b"N\x86a\x85R."
    for use in (lambda: read(tmp_path, data), lambda: check_pickle(io.BytesIO(data))):
        with pytest.raises(RefusedError, match="a tuple of tuples as a key"):
            use()
