"""Atomic writing of files, archives of arrays, and checks of folders."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .errors import DatasetError, PersonSearchError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or a cause of it, means that a file cannot grow: disk full, quota or size limit reached."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, error: type[PersonSearchError] = DatasetError, durable: bool = False
) -> Iterator[Path]:
    """Context with a temporary path that replaces `path` on success and is removed on failure.

    Args:
        path: file to write; its folder is created if missing.
        error: class of the error to raise if the file cannot be written.
        durable: whether to flush to disk first, so that not even a power failure leaves half a file.

    Raises:
        PersonSearchError: folder or file cannot be written; of class `error`.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            if durable:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as reason:
        raise error(
            f"cannot write {path}: {reason.strerror or reason}; check folder, rights and free space"
        ) from reason


def write_arrays(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as an npz archive, atomically; `read_arrays` reads it back.

    Raises:
        DatasetError: the file cannot be written.
    """
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def read_arrays(path: str | os.PathLike[str], content: str) -> dict[str, np.ndarray]:
    """Arrays of an npz archive, by name.

    Args:
        path: path of the archive.
        content: description of its content for messages, such as "a search problem".

    Raises:
        DatasetError: the file is missing, damaged, not an npz archive, or has pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; expected {content} (npz)") from error
    except Exception as error:  # numpy raises a dozen different types for damaged archives; a single array has no names
        raise DatasetError(f"{path} is not {content}: expected an undamaged npz archive of arrays ({error})") from error


def probe_folder(folder: str | os.PathLike[str]) -> None:
    """Creates a folder if it is missing, and checks that files can be written there.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
