"""On-disk cache of parsed annotations, stored as flat arrays."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from ..io import read_arrays, write_arrays
from .records import Frame, Person

logger = logging.getLogger(__name__)

CACHE_FOLDER = ".person_search_cache"
_FINGERPRINT = "fingerprint"

Arrays = dict[str, np.ndarray]


def fingerprint(sources: Sequence[Path], version: int) -> str:
    """Digest of the names, sizes and modification times of a reader's source files.

    Args:
        sources: files, or folders, which stand for all files directly inside. Missing ones count as absent.
        version: version of the reader, to be changed when it returns other arrays for the same files.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"version {version}\n".encode())
    for source in sources:
        digest.update(f"{source.name}\n".encode())
        for line in _describe(source):
            digest.update(line.encode(errors="surrogateescape"))
    return digest.hexdigest()


def cached_arrays(name: str, root: Path, sources: Sequence[Path], version: int, build: Callable[[], Arrays]) -> Arrays:
    """Arrays returned by `build`, read from the cache unless a source has changed.

    The cache file is stored in `root`/.person_search_cache or, if that is not writable, in
    $XDG_CACHE_HOME/person_search (default ~/.cache/person_search). If neither is writable nothing is stored. Damaged
    files are ignored and rewritten.

    Args:
        name: file name without extension, unique under `root`.
        root: folder of the dataset.
        sources: see `fingerprint`.
        version: see `fingerprint`.
        build: reads the sources; called only without a valid cache file. Must not return object arrays.
    """
    files = [folder / f"{name}.npz" for folder in _folders(root)]
    key = fingerprint(sources, version)
    for file in files:
        stored = _load(file, key)
        if stored is not None:
            return stored
    arrays = build()
    # Arrays of files that changed while being read may be inconsistent, so they are not stored.
    if fingerprint(sources, version) == key and not any(_store(file, key, arrays) for file in files):
        logger.warning("No cache for %s: neither %s can be written", name, " nor ".join(str(f.parent) for f in files))
    return arrays


def _describe(source: Path) -> list[str]:
    """Line "name size mtime_ns" of each file that `source` stands for, sorted."""
    try:
        if not source.is_dir():
            status = source.stat()
            return [f"{status.st_size} {status.st_mtime_ns}\n"]
        with os.scandir(source) as entries:
            statuses = [(entry.name, entry.stat()) for entry in entries if entry.is_file()]
    except OSError:
        return ["absent\n"]
    return sorted(f"{name} {status.st_size} {status.st_mtime_ns}\n" for name, status in statuses)


def _folders(root: Path) -> list[Path]:
    """Candidate folders for cache files, preferred first."""
    home = os.path.expanduser("~")  # stays "~" if unknown
    user = Path(os.environ.get("XDG_CACHE_HOME") or (tempfile.gettempdir() if home == "~" else f"{home}/.cache"))
    # Datasets may share a name: in the user's folder, a digest of the root separates them.
    place = hashlib.sha256(os.path.abspath(root).encode(errors="surrogateescape")).hexdigest()[:16]
    below_root = [root / CACHE_FOLDER] if root.is_dir() else []
    return [*below_root, user / "person_search" / place]


def _load(file: Path, key: str) -> Arrays | None:
    """Cached arrays; None if there are none, or the file is outdated or damaged."""
    if not os.path.isfile(file):
        return None
    try:
        arrays = read_arrays(file, "a cache")
    except DatasetError as error:
        logger.warning("Ignored a damaged cache file: %s", error)
        return None
    return arrays if str(arrays.pop(_FINGERPRINT, "")) == key else None


def _store(file: Path, key: str, arrays: Arrays) -> bool:
    """Writes the arrays atomically; returns False if the folder is not writable."""
    try:
        write_arrays(file, {_FINGERPRINT: np.array(key), **arrays})
    except DatasetError:
        return False
    return True


@dataclass(frozen=True)
class FrameTable:
    """Table of F frames with A boxes in total.

    Attributes:
        image_ids: (F,) str, names of the frames.
        sizes: (F, 2) int64, height and width in pixels; 0 if the image cannot be read.
        counts: (F,) int64, number of boxes per frame, A in total.
        boxes: (A, 4) float64, (x0, y0, x1, y1) in pixels, frame by frame.
        person_ids: (A,) int64, identities; -1 is unlabelled.
    """

    image_ids: np.ndarray
    sizes: np.ndarray
    counts: np.ndarray
    boxes: np.ndarray
    person_ids: np.ndarray

    @classmethod
    def from_frames(
        cls,
        image_ids: Sequence[str],
        sizes: Sequence[tuple[int, int] | None],
        boxes: Sequence[np.ndarray],
        person_ids: Sequence[np.ndarray],
    ) -> FrameTable:
        """Table from lists by frame: F sizes (None if unknown), boxes (n, 4) and identities (n,)."""
        return cls(
            np.array(image_ids, dtype=np.str_),
            np.asarray([size or (0, 0) for size in sizes], dtype=np.int64).reshape(-1, 2),
            np.array([len(rows) for rows in boxes], dtype=np.int64),
            np.concatenate([np.zeros((0, 4)), *boxes]).astype(np.float64),
            np.concatenate([np.zeros(0, np.int64), *person_ids]).astype(np.int64),
        )

    def arrays(self) -> Arrays:
        """Columns by name; `FrameTable(**arrays)` is the inverse."""
        return dict(vars(self))

    def frames(self, folder: Path, camera_of: Callable[[str], int] | None = None) -> Iterator[Frame]:
        """Frames one by one; `folder` has the images, `camera_of` maps a frame's name to its camera."""
        boxes, person_ids = self.boxes.tolist(), self.person_ids.tolist()
        start = 0
        for image_id, (height, width), count in zip(
            self.image_ids.tolist(), self.sizes.tolist(), self.counts.tolist(), strict=True
        ):
            rows = range(start, start + count)
            persons = [Person(tuple(boxes[row]), person_ids[row]) for row in rows]
            camera = camera_of(image_id) if camera_of is not None else None
            yield Frame(f"{folder}/{image_id}", image_id, height or None, width or None, persons, camera)
            start += count
