"""MATLAB files of official annotations: variables, texts, boxes and structs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat, whosmat

from ..errors import DatasetError

_HEADER_BYTES = 128


def load_variable(path: Path, names: Sequence[str]) -> np.ndarray:
    """First of the named variables that a MATLAB file has.

    Args:
        path: MATLAB file up to version 7.2.
        names: variable names in order of preference.

    Raises:
        DatasetError: the file is missing or damaged, or has none of the variables.
    """
    try:
        variables = loadmat(path, variable_names=list(names))
        held = [] if any(name in variables for name in names) else [name for name, *_ in whosmat(path)]
    except MemoryError:
        raise
    except Exception as error:  # scipy raises a dozen different types for damaged files
        if not path.exists():
            raise DatasetError(f"{path}: the file is missing; it is part of the official download") from None
        raise DatasetError(f"{path}: not a readable MATLAB file ({error}); fetch it again") from error
    for name in names:
        if name in variables:
            return variables[name]
    raise DatasetError(f"{path}: holds {held or 'no variable'}, expected {' or '.join(names)}")


def check_complete(path: Path) -> None:
    """Checks that a file is not truncated, from the lengths of its variables and without reading them.

    Raises:
        DatasetError: the file ends within a variable, or has none. Only version 5 is checked.
    """
    size = path.stat().st_size
    with path.open("rb") as f:
        header = f.read(_HEADER_BYTES)
        if not header.startswith(b"MATLAB 5.0"[: len(header)]):
            return
        order = "<" if header.endswith(b"IM") else ">"
        end = _HEADER_BYTES
        while end < size:
            f.seek(end)
            tag = f.read(8)
            end += 8 + (struct.unpack(f"{order}I", tag[4:])[0] if len(tag) == 8 else 0)
    if end != size or size == _HEADER_BYTES:
        raise DatasetError(
            f"{path}: is truncated, it has {size} of at least {max(end, _HEADER_BYTES + 8)} bytes; download it again"
        )


@contextmanager
def naming(path: Path, where: str) -> Iterator[None]:
    """Context that turns errors in the content of `path` into a DatasetError naming file and position."""
    try:
        yield
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError) as error:
        raise DatasetError(f"{path}: {where}: {error}; fetch the file again") from error


def text(value: Any) -> str:
    """Text of a MATLAB char array; ValueError for other arrays."""
    array = np.asarray(value)
    if array.dtype.kind != "U" or array.size != 1:
        raise ValueError(f"expected one text, found {array.dtype} of shape {array.shape}")
    return str(array.item())


def texts(path: Path, name: str) -> list[str]:
    """Texts of a MATLAB cell array; DatasetError, naming file and cell, if one is not a text."""
    values = []
    for number, cell in enumerate(load_variable(path, (name,)).ravel(), 1):
        with naming(path, f"{name}{{{number}}}"):
            values.append(text(cell))
    return values


def struct_array(path: Path, name: str) -> list[Any]:
    """Elements of a struct array in a MATLAB file; DatasetError, naming file and variable, for other arrays."""
    variable = load_variable(path, (name,))
    with naming(path, name):
        return structs(variable)


def box(value: Any) -> tuple[float, float, float, float] | None:
    """(x, y, w, h) of a MATLAB array of four numbers; None for an empty one, ValueError for others.

    Returned as floats: the official files use uint16 or smaller, where sums would overflow.
    """
    array = np.asarray(value)
    if array.size == 0:
        return None
    if array.size != 4 or array.dtype.kind not in "uif":
        raise ValueError(f"expected a box of 4 numbers, found {array.dtype} of shape {array.shape}")
    x, y, w, h = array.ravel().tolist()
    return float(x), float(y), float(w), float(h)


def structs(value: Any) -> list[Any]:
    """Elements of a MATLAB struct array; MATLAB writes an empty one as an array without fields."""
    array = np.asarray(value)
    if array.size == 0:
        return []
    if array.dtype.names is None:
        raise ValueError(f"expected a struct array, found {array.dtype} of shape {array.shape}")
    return list(array.ravel())
