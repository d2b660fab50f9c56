"""CUHK-SYSU as its authors ship it: all boxes in Images.mat, identities in lists of (frame, box)."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DatasetError
from . import matlab
from .cache import Arrays, cached_arrays
from .cuhk_galleries import EXPECTED, Xywh, gallery_files, gallery_identities, person_number, pool_frames
from .images import image_sizes
from .records import UNLABELLED, Record, build_records, require_file, require_folder
from .table import FrameTable

logger = logging.getLogger(__name__)

_READER_VERSION = 1


def load_cuhk_sysu(root: Path, split: str) -> list[Record]:
    """The records of CUHK-SYSU's training set (Images.mat without pool.mat) or test set (pool.mat).

    A box has the identity that Train.mat, or the smallest TestG file, or else Person.mat gives to the box of equal
    coordinates in its frame ("p123" is 123), otherwise -1. Boxes of zero width exist and are dropped.

    Args:
        root: the folder CUHK-SYSU.
        split: "train" or "test".

    Raises:
        DatasetError: a file or an image is missing (frame sizes stand in the images only), a file is damaged or
            breaks the format; the message names it.
    """
    dataset = f"cuhk_sysu_{split}"
    require_folder(dataset, root, EXPECTED)
    identities = root / "annotation" / "test" / "train_test" / "Train.mat"
    if split == "test":
        identities = next(iter(gallery_files(root).values()))
    annotation = root / "annotation"
    sources = [annotation / f for f in ("Images.mat", "pool.mat", "Person.mat")] + [identities, root / "Image" / "SSM"]
    arrays = cached_arrays(dataset, root, sources, _READER_VERSION, lambda: _read_split(root, split))
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
            "complete the folder Image/SSM, the annotations hold no frame sizes"
        )
    labels = _labels(root, split, frames)
    person_ids, boxes = [], []
    for name, rows in frames.items():
        # Taken out once used: of two equal boxes in a frame the first is the person's.
        person_ids.append(np.array([labels.pop((name, row), UNLABELLED) for row in rows], dtype=np.int64))
        xywh = np.array(rows, dtype=np.float64).reshape(-1, 4)
        boxes.append(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1))
    if labels:
        logger.warning(
            "%s: %d labelled boxes are not in Images.mat, such as %s", dataset, len(labels), next(iter(labels))
        )
    return FrameTable.from_frames(list(frames), image_sizes(files), boxes, person_ids).arrays()


def _frames(root: Path, split: str) -> dict[str, list[Xywh]]:
    """Frame -> its boxes as in the file, for the frames of a split in the order of Images.mat."""
    file = root / "annotation" / "Images.mat"
    pool = set(pool_frames(root))
    frames: dict[str, list[Xywh]] = {}
    for number, image in enumerate(matlab.struct_array(file, "Img"), 1):
        with matlab.naming(file, f"Img({number})"):
            name = matlab.text(image["imname"])
            if (name in pool) != (split == "test"):
                continue
            if name in frames:
                raise ValueError(f"the frame {name} stands there twice")
            boxes = [matlab.box(person["idlocate"]) for person in matlab.structs(image["box"])]
            frames[name] = [box for box in boxes if box is not None]
    if split == "test" and pool - frames.keys():
        raise DatasetError(
            f"{file}: lacks {len(pool - frames.keys())} frames of pool.mat, such as {min(pool - frames.keys())}"
        )
    return frames


def _labels(root: Path, split: str, frames: dict[str, list[Xywh]]) -> dict[tuple[str, Xywh], int]:
    """(frame, box) -> identity for the frames of a split; the list that fixes the benchmark goes before Person.mat."""
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
    """(frame, (x, y, w, h), identity) of every appearance in Train.mat, a cell array, or Person.mat, a struct array."""
    entries = matlab.load_variable(file, (variable,))
    for number, entry in enumerate(entries.ravel(), 1):
        with matlab.naming(file, f"{variable}({number})"):
            person = entry if entries.dtype.names else matlab.structs(entry)[0]
            identity = person_number(matlab.text(person["idname"]))
            scenes = [(matlab.text(s["imname"]), matlab.box(s["idlocate"])) for s in matlab.structs(person["scene"])]
        yield from ((frame, box, identity) for frame, box in scenes if box is not None)
