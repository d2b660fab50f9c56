"""CUHK-SYSU in its official format: Images.mat, lists of (frame, box), and galleries TestG50.mat to TestG4000.mat.

Gallery files have an entry for every gallery frame of every query: 11.6 million in TestG4000.mat, for which SciPy needs
minutes and some 11 GB. Files are therefore parsed on first use, and cached.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from . import matlab
from .cache import Arrays, FrameTable, cached_arrays
from .catalog import require_file, require_folder
from .images import image_sizes
from .records import (
    UNLABELLED,
    BoxXYXY,
    Gallery,
    Query,
    Record,
    SearchProtocol,
    build_records,
    check_queries,
)

logger = logging.getLogger(__name__)

EXPECTED = "the official CUHK-SYSU download (Image/SSM/, annotation/Images.mat, annotation/pool.mat, annotation/test/)"
_GALLERIES_VERSION = 1
_FILE_NAME = re.compile(r"TestG(\d+)\.mat")
_PERSON_NAME = re.compile(r"p?(\d+)")

Xywh = tuple[float, float, float, float]


def load_cuhk_sysu_protocol(root: Path) -> SearchProtocol:
    """Queries of CUHK-SYSU, with the galleries that have files, by size ("50", "100", ...).

    Args:
        root: folder of CUHK-SYSU.

    Returns:
        A protocol whose `galleries` are read on access; queries are the same for all sizes.

    Raises:
        DatasetError: there is no gallery file, one is damaged, or a query's frame is not in pool.mat.
    """
    require_folder("cuhk_sysu_test", root, EXPECTED)
    files = gallery_files(root)
    for file in files.values():
        matlab.check_complete(file)  # large files are read later, possibly after a long training
    smallest = next(iter(files.values()))
    queries = _queries(_gallery_arrays(root, smallest))
    frames = pool_frames(root)
    protocol = SearchProtocol("cuhk_sysu", queries, CuhkGalleries(root, queries))
    return check_queries(f"{smallest}: cuhk_sysu_test", protocol, frames)


class CuhkGalleries(Mapping[str, tuple[Gallery, ...]]):
    """Galleries by size, one for each query; files are read on first access."""

    def __init__(self, root: Path, queries: tuple[Query, ...]) -> None:
        """
        Args:
            root: folder of CUHK-SYSU.
            queries: queries that all gallery files must have.
        """
        self._root = root
        self._queries = queries
        self._files = gallery_files(root)
        self._read: dict[str, tuple[Gallery, ...]] = {}

    def __getitem__(self, size: str) -> tuple[Gallery, ...]:
        """Galleries of a size; KeyError, listing the sizes, for an unknown one, DatasetError for a damaged file."""
        if size not in self._files:
            raise KeyError(f"CUHK-SYSU has no gallery file of size {size!r}; there are {', '.join(self._files)}")
        if size not in self._read:
            self._read[size] = self._load(self._files[size])
        return self._read[size]

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, size: object) -> bool:
        return size in self._files

    def _load(self, file: Path) -> tuple[Gallery, ...]:
        arrays = _gallery_arrays(self._root, file)
        if _queries(arrays) != self._queries:
            raise DatasetError(f"{file}: has other queries than the smaller galleries; download the files again")
        foreign = set(arrays["images"].tolist()) - set(pool_frames(self._root))
        if foreign:
            raise DatasetError(f"{file}: {len(foreign)} gallery frames are not in pool.mat, such as {min(foreign)}")
        return _galleries(arrays)


def gallery_files(root: Path) -> dict[str, Path]:
    """Gallery files by size, in ascending order.

    Raises:
        DatasetError: there are none.
    """
    folder = root / "annotation" / "test" / "train_test"
    found = [(int(m.group(1)), f) for f in folder.glob("TestG*.mat") if (m := _FILE_NAME.fullmatch(f.name))]
    if not found:
        require_file(
            "cuhk_sysu_test", folder / "TestG50.mat", "the protocol of CUHK-SYSU, TestG50.mat to TestG4000.mat"
        )
    return {str(size): file for size, file in sorted(found)}


def pool_frames(root: Path) -> list[str]:
    """Names of the test frames (pool.mat)."""
    return matlab.texts(root / "annotation" / "pool.mat", "pool")


def gallery_identities(root: Path) -> Iterator[tuple[str, Xywh, int]]:
    """(frame, (x, y, w, h), identity) of every box labelled in the smallest gallery file."""
    arrays = _gallery_arrays(root, next(iter(gallery_files(root).values())))
    images, persons = arrays["images"].tolist(), arrays["query_person"].tolist()
    query_of = np.repeat(np.arange(len(persons)), arrays["gallery_count"])
    boxes = np.concatenate([arrays["query_box"], arrays["hit_box"]]).tolist()
    frames = np.concatenate([arrays["query_image"], arrays["gallery_image"][arrays["hit"]]]).tolist()
    owners = np.concatenate([np.arange(len(persons)), query_of[arrays["hit"]]]).tolist()
    for box, frame, owner in zip(boxes, frames, owners, strict=True):
        yield images[frame], tuple(box), persons[owner]


def person_number(name: str) -> int:
    """Number of an identity, 123 for "p123"; ValueError for other names."""
    match = _PERSON_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"expected an identity such as p123, found {name!r}")
    return int(match.group(1))


def _gallery_arrays(root: Path, file: Path) -> Arrays:
    """Flat arrays of a TestG file, cached.

    With Q queries, n gallery entries, h of which show the queried person, and I frames:
    images (I,) str; query_image (Q,), query_box (Q, 4) xywh, query_person (Q,); gallery_count (Q,) entries per query;
    gallery_image (n,); hit (h,), indices into the n entries; hit_box (h, 4) xywh. *_image are indices into `images`.
    """
    return cached_arrays(f"cuhk_sysu_{file.stem}", root, [file], _GALLERIES_VERSION, lambda: read_gallery(file))


def read_gallery(file: Path) -> Arrays:
    """The galleries of all queries of a protocol file, as flat arrays."""
    if file.stat().st_size > 10_000_000:
        logger.info("Reading %s for the first time; this takes minutes", file)
    number_of: dict[str, int] = {}  # index in `images` by frame
    queries: list[tuple[int, Xywh, int]] = []
    counts: list[int] = []
    entries: list[int] = []
    hits: list[tuple[int, Xywh]] = []
    for number, row in enumerate(matlab.struct_array(file, file.stem), 1):
        with matlab.naming(file, f"{file.stem}({number})"):
            query = matlab.structs(row["Query"])[0]
            box = matlab.box(query["idlocate"])
            if box is None or min(box[2:]) <= 0:
                raise ValueError(f"the query's box is {box}")
            frame = number_of.setdefault(matlab.text(query["imname"]), len(number_of))
            queries.append((frame, box, person_number(matlab.text(query["idname"]))))
            before = len(entries)
            for entry in matlab.structs(row["Gallery"]):
                box = matlab.box(entry["idlocate"])
                if box is not None:
                    hits.append((len(entries), box))
                entries.append(number_of.setdefault(matlab.text(entry["imname"]), len(number_of)))
            counts.append(len(entries) - before)
    return {
        "images": np.array(list(number_of), dtype=np.str_),
        "query_image": np.array([frame for frame, _, _ in queries], dtype=np.int32),
        "query_box": np.array([box for _, box, _ in queries], dtype=np.float64).reshape(-1, 4),
        "query_person": np.array([person for _, _, person in queries], dtype=np.int64),
        "gallery_count": np.array(counts, dtype=np.int64),
        "gallery_image": np.array(entries, dtype=np.int32),
        "hit": np.array([place for place, _ in hits], dtype=np.int64),
        "hit_box": np.array([box for _, box in hits], dtype=np.float64).reshape(-1, 4),
    }


def _queries(arrays: Arrays) -> tuple[Query, ...]:
    images = arrays["images"].tolist()
    columns = (arrays["query_image"].tolist(), arrays["query_box"].tolist(), arrays["query_person"].tolist())
    return tuple(Query(images[frame], _corners(box), person) for frame, box, person in zip(*columns, strict=True))


def _galleries(arrays: Arrays) -> tuple[Gallery, ...]:
    images, entries = arrays["images"].tolist(), arrays["gallery_image"]
    ends = np.cumsum(arrays["gallery_count"])
    starts = ends - arrays["gallery_count"]
    first_hit, last_hit = np.searchsorted(arrays["hit"], starts), np.searchsorted(arrays["hit"], ends)
    galleries = []
    for start, end, first, last in zip(starts, ends, first_hit, last_hit, strict=True):
        frames = [images[entry] for entry in entries[start:end].tolist()]
        places = (arrays["hit"][first:last] - start).tolist()
        boxes = [_corners(box) for box in arrays["hit_box"][first:last].tolist()]
        shown: dict[str, BoxXYXY] = {}
        for place, box in zip(places, boxes, strict=True):
            shown.setdefault(frames[place], box)  # the first box counts if a frame is listed twice
        galleries.append(Gallery(tuple(frames), shown))
    return tuple(galleries)


def _corners(xywh: list[float]) -> BoxXYXY:
    x, y, w, h = xywh
    return x, y, x + w, y + h


_FRAMES_VERSION = 1


def load_cuhk_sysu(root: Path, split: str) -> list[Record]:
    """Records of CUHK-SYSU's training set (Images.mat without pool.mat) or test set (pool.mat).

    A box gets the identity of the box with equal coordinates in Train.mat or the smallest TestG file, else in
    Person.mat ("p123" is 123), else -1. Boxes of zero width exist and are dropped.

    Args:
        root: folder of CUHK-SYSU.
        split: "train" or "test".

    Raises:
        DatasetError: a file or an image is missing (only images have the frame sizes), or a file is damaged; the
            message names it.
    """
    dataset = f"cuhk_sysu_{split}"
    require_folder(dataset, root, EXPECTED)
    identities = root / "annotation" / "test" / "train_test" / "Train.mat"
    if split == "test":
        identities = next(iter(gallery_files(root).values()))
    annotation = root / "annotation"
    sources = [annotation / f for f in ("Images.mat", "pool.mat", "Person.mat")] + [identities, root / "Image" / "SSM"]
    arrays = cached_arrays(dataset, root, sources, _FRAMES_VERSION, lambda: _read_split(root, split))
    return build_records(dataset, FrameTable(**arrays).frames(root.absolute() / "Image" / "SSM"))


def _read_split(root: Path, split: str) -> Arrays:
    dataset = f"cuhk_sysu_{split}"
    for name in ("Images.mat", "pool.mat"):
        require_file(dataset, root / "annotation" / name, EXPECTED)
    frames = _frames(root, split)
    files = [root / "Image" / "SSM" / name for name in frames]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise DatasetError(
            f"{dataset}: {len(missing)} of {len(files)} images are missing, the first is {missing[0]}; "
            "complete the folder Image/SSM, since the annotations have no frame sizes"
        )
    labels = _labels(root, split, frames)
    person_ids, boxes = [], []
    for name, rows in frames.items():
        # Removed once used: of two equal boxes in a frame, the first gets the identity.
        person_ids.append(np.array([labels.pop((name, row), UNLABELLED) for row in rows], dtype=np.int64))
        xywh = np.array(rows, dtype=np.float64).reshape(-1, 4)
        boxes.append(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
    if labels:
        logger.warning(
            "%s: %d labelled boxes are not in Images.mat, such as %s", dataset, len(labels), next(iter(labels))
        )
    return FrameTable.from_frames(list(frames), image_sizes(files), boxes, person_ids).arrays()


def _frames(root: Path, split: str) -> dict[str, list[Xywh]]:
    """Boxes by frame, in the order of Images.mat, for the frames of a split."""
    file = root / "annotation" / "Images.mat"
    pool = set(pool_frames(root))
    frames: dict[str, list[Xywh]] = {}
    for number, image in enumerate(matlab.struct_array(file, "Img"), 1):
        with matlab.naming(file, f"Img({number})"):
            name = matlab.text(image["imname"])
            if (name in pool) != (split == "test"):
                continue
            if name in frames:
                raise ValueError(f"the frame {name} occurs twice")
            boxes = [matlab.box(person["idlocate"]) for person in matlab.structs(image["box"])]
            frames[name] = [box for box in boxes if box is not None]
    if split == "test" and pool - frames.keys():
        raise DatasetError(
            f"{file}: lacks {len(pool - frames.keys())} frames of pool.mat, such as {min(pool - frames.keys())}"
        )
    return frames


def _labels(root: Path, split: str, frames: dict[str, list[Xywh]]) -> dict[tuple[str, Xywh], int]:
    """Identities by (frame, box) of a split; the benchmark's own list takes precedence over Person.mat."""
    annotation = root / "annotation"
    named: list[Iterator[tuple[str, Xywh, int]]] = []
    if split == "train":
        file = annotation / "test" / "train_test" / "Train.mat"
        require_file("cuhk_sysu_train", file, "the identities of CUHK-SYSU's training set")
        named.append(_identities(file, "Train"))
    else:
        named.append(gallery_identities(root))
    if (annotation / "Person.mat").is_file():
        named.append(_identities(annotation / "Person.mat", "Person"))
    labels: dict[tuple[str, Xywh], int] = {}
    for source in named:
        for frame, box, person in source:
            if frame in frames:
                labels.setdefault((frame, box), person)
    return labels


def _identities(file: Path, variable: str) -> Iterator[tuple[str, Xywh, int]]:
    """(frame, (x, y, w, h), identity) of every occurrence in Train.mat (cell array) or Person.mat (struct array)."""
    entries = matlab.load_variable(file, (variable,))
    for number, entry in enumerate(entries.ravel(), 1):
        with matlab.naming(file, f"{variable}({number})"):
            person = entry if entries.dtype.names else matlab.structs(entry)[0]
            identity = person_number(matlab.text(person["idname"]))
            scenes = [(matlab.text(s["imname"]), matlab.box(s["idlocate"])) for s in matlab.structs(person["scene"])]
        yield from ((frame, box, identity) for frame, box in scenes if box is not None)
