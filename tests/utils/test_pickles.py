"""Pickles are checked before anything of them is used."""

from __future__ import annotations

import io
import pickle
import struct

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
