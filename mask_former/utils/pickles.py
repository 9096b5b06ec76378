"""Read pickles without running code, and check those that torch reads.

A pickle that would call anything except the constructors of arrays and plain containers is refused,
and so is one whose few bytes would take all memory or time: Python's own unpickler in C reserves
memory for the largest number that a pickle gives to an object, and the hash of a tuple that holds
the same tuple twice, 40 levels deep, takes years.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["RefusedError", "check_pickle", "check_pickles", "read_pickle"]

_LEGACY_PICKLES = 5
"""Pickles at the start of a file of torch before 1.6; the data of the tensors follow."""


class RefusedError(Exception):
    """A file that is refused; the argument is the reason."""

    @classmethod
    def of_code(cls, name: str) -> RefusedError:
        """Refuse a file that would run the function or program ``name``."""
        return cls(f"loading it would run code (found: {name})")


def read_pickle(path: Path) -> Any:
    """Read a pickle of arrays and plain containers.

    Raises:
        RefusedError: If it would run code, or take all memory or time.
        EOFError, UnpicklingError: If it is damaged.
    """
    with path.open("rb") as file:
        return _load(_ArrayUnpickler(file, encoding="latin1"))


def check_pickle(file: IO[bytes]) -> None:
    """Check that a pickle of any classes ends, without loading them.

    Raises:
        RefusedError, EOFError, UnpicklingError: As :func:`read_pickle` does, but not for code.
    """
    _load(_InertUnpickler(file, encoding="latin1"))


def check_pickles(path: Path) -> None:
    """Check the pickles at the start of a file that torch before 1.6 wrote.

    Raises:
        RefusedError, EOFError, UnpicklingError: As :func:`check_pickle` does.
    """
    with path.open("rb") as file:
        for _ in range(_LEGACY_PICKLES):
            if not file.peek(1):  # a file with a single pickle
                return
            check_pickle(file)


def _load(unpickler: _BoundedUnpickler) -> Any:
    try:
        return unpickler.load()
    except RefusedError:
        raise
    except EOFError as error:
        raise EOFError("it ends too early") from error
    except Exception as error:  # damaged data may raise anything
        raise pickle.UnpicklingError("it is not a pickle of weights") from error


_Load = Callable[[Any], None]


def _checking_keys(load: _Load, keys: slice) -> _Load:
    """Refuse nested tuples as keys, before ``load`` computes their hash.

    Args:
        load: The method that adds keys to a dict or members to a set.
        keys: Their positions on the stack.
    """

    def checked(self: Any) -> None:
        for key in self.stack[keys]:
            _check_key(key)
        load(self)

    return checked


def _check_key(key: Any) -> None:
    if isinstance(key, tuple | frozenset) and any(
        isinstance(part, tuple | frozenset) for part in key
    ):
        raise RefusedError("it has a tuple of tuples as a key, which may take for ever")


def _changing_data(load: _Load) -> _Load:
    """Refuse states that change more than the data of an object; ``load`` sets the state."""

    def checked(self: Any) -> None:
        target, state = self.stack[-2:]
        if callable(target):
            raise RefusedError("it would change a function or class")
        if isinstance(target, OrderedDict) and not (
            isinstance(state, dict) and state.keys() <= {"_metadata"}  # torch's version numbers
        ):
            raise RefusedError("it would hide the methods of a dict")
        if isinstance(target, np.dtype):
            # numpy believes a state: its size, offsets and flags may lead outside of the memory.
            own: Any = target.__reduce__()[2]
            if not isinstance(state, tuple) or state[2:] != own[2:]:
                raise RefusedError(f"it has an array of a type that is not {target}")
        load(self)

    return checked


class _BoundedUnpickler(pickle._Unpickler):
    """Python's unpickler in Python, which needs no more memory than the pickle has objects."""

    dispatch: ClassVar[dict[int, _Load]] = dict(pickle._Unpickler.dispatch)
    for _code, _keys in (
        (pickle.SETITEM, slice(-2, -1)),
        (pickle.SETITEMS, slice(0, None, 2)),
        (pickle.DICT, slice(0, None, 2)),
        (pickle.ADDITEMS, slice(None)),
        (pickle.FROZENSET, slice(None)),
    ):
        dispatch[_code[0]] = _checking_keys(dispatch[_code[0]], _keys)

    dispatch[pickle.BUILD[0]] = _changing_data(dispatch[pickle.BUILD[0]])
    read: Callable[[int], bytes]


class _Inert:
    """Stand-in for every class and function that a pickle names, and for what they would make."""

    def __new__(cls, *args: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def add(self, member: Any) -> None: ...

    append = extend = add


class _InertUnpickler(_BoundedUnpickler):
    """An unpickler that loads no class and calls no function."""

    def find_class(self, module: str, name: str) -> Any:
        return _ordered_dict if (module, name) == ("collections", "OrderedDict") else _Inert

    def persistent_load(self, pid: Any) -> Any:
        return _Inert()


def _ordered_dict(pairs: Iterable[tuple[Any, Any]] = ()) -> OrderedDict[Any, Any]:
    """``OrderedDict``; Python 2 wrote its content as pairs."""
    made: OrderedDict[Any, Any] = OrderedDict()
    for key, value in pairs:
        _check_key(key)
        made[key] = value
    return made


def _dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype[Any]:
    """``numpy.dtype`` of a code such as ``f4``: a copy, whose byte order may be set."""
    if not isinstance(code, str):
        raise RefusedError("it has an array of a compound type")
    return np.dtype(code, copy=True)


def _empty_array(kind: str, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """``numpy._reconstruct``, which gets its content, and its size with it, later."""
    if shape != (0,):
        raise RefusedError(f"it has an array of the shape {shape!r} without content")
    return np.empty(0, dtype)


def _scalar(dtype: np.dtype[Any], content: bytes | str) -> Any:
    data = content.encode("latin1") if isinstance(content, str) else content
    return _from_bytes(data, dtype)[0]


def _from_bytes(content: Any, dtype: Any) -> NDArray[Any]:
    """``numpy.frombuffer``, but not of another array, whose memory a pickle can free."""
    if not isinstance(content, bytes | bytearray):
        raise RefusedError(f"it has an array in the memory of a {type(content).__name__}")
    return np.frombuffer(content, dtype)


def _array_in(buffer: bytes, dtype: Any, shape: Any, order: Any, axes: Any = None) -> NDArray[Any]:
    """``numpy._frombuffer`` of any version."""
    array = _from_bytes(buffer, dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


def _encode(text: str, encoding: str) -> bytes:
    """Convert text to bytes, which protocols below 3 write as text; the encoding is latin1."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): "numpy.ndarray",  # only named, never called
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _array_in,
    ("_codecs", "encode"): _encode,
}
"""Functions and classes in pickles of arrays and containers, each with its replacement."""


class _ArrayUnpickler(_BoundedUnpickler):
    """An unpickler of arrays and plain containers that refuses everything else."""

    def find_class(self, module: str, name: str) -> Any:
        found = _ALLOWED.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            if not self.read(1):  # the name may be cut off
                raise EOFError
            raise RefusedError.of_code(f"{module}.{name}")
        return found
