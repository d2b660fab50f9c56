"""Files and folders: written whole or not at all, archives of arrays, and folders tried before long work."""

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
    """Whether an error, or one that it was raised from, says that a file cannot grow: disk, quota or limit reached."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def replacing(
    path: str | os.PathLike[str], *, error: type[PersonSearchError] = DatasetError, durable: bool = False
) -> Iterator[Path]:
    """A temporary path beside `path`, which takes its place when the block ends well and vanishes otherwise.

    Args:
        path: the file to write; its folder is made where it is missing.
        error: class of the error of a file that cannot be written.
        durable: wait until the disk has the content, so that not even a power failure leaves half a file.

    Raises:
        PersonSearchError: folder or file cannot be written; of the class `error`.
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
    """Reads all arrays of an npz archive.

    Args:
        path: the archive.
        content: what it holds, for messages, such as "a search problem".

    Raises:
        DatasetError: the file is missing, damaged, no such archive, or holds pickled objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; expected {content} (npz)") from error
    except Exception as error:  # a damaged archive makes numpy raise any of a dozen types, a single array has no names
        raise DatasetError(f"{path} is not {content}: expected an undamaged npz archive of arrays ({error})") from error


def probe_folder(folder: str | os.PathLike[str]) -> None:
    """Makes a folder where it is missing, and writes a file there that is gone at once.

    Raises:
        OSError: either cannot be done.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
