"""Foreground masks of annotated persons: their JSON file, and fast decoding of COCO's run lengths."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from ..errors import DatasetError
from ..io import replacing
from .catalog import dataset_root

logger = logging.getLogger(__name__)

FORMAT = "person_search.masks/1"
BOX_TOLERANCE = 1.0  # pixels; a box that moved further is a different annotation
MIN_FOREGROUND = 0.05  # fraction of its box below which a mask would hide the person rather than the background

Box = tuple[float, float, float, float]


class MaskStore:
    """Foreground masks of a dataset by frame and box, so that a changed annotation never gets an old mask.

    Persons without a mask are stored as well, to record that making one was tried.

    Attributes:
        dataset: name of the dataset.
        provider: source of the masks, for example "grabcut".
    """

    def __init__(self, dataset: str = "", provider: str = "") -> None:
        self.dataset = dataset
        self.provider = provider
        self._entries: dict[str, list[tuple[Box, dict[str, Any] | None]]] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskStore:
        """Store from a file written by `save`.

        Raises:
            DatasetError: the file is missing, not JSON, or not a mask file.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise DatasetError(f"mask file {path}: cannot be read ({error.strerror})") from error
        except ValueError as error:
            raise DatasetError(
                f"mask file {path}: not JSON ({error}); remove it and make it again with prepare_masks.py"
            ) from error
        found = content.get("format") if isinstance(content, dict) else type(content).__name__
        if found != FORMAT:
            raise DatasetError(f"mask file {path}: field 'format' is {found!r}, expected {FORMAT!r}")
        store = cls(str(content.get("dataset", "")), str(content.get("provider", "")))
        masks = content.get("masks")
        if not isinstance(masks, dict):
            raise DatasetError(f"mask file {path}: field 'masks' must map frames to their masks")
        for image_id, entries in masks.items():
            try:
                store._entries[image_id] = [_parse_entry(entry) for entry in entries]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                raise DatasetError(f"mask file {path}: masks of {image_id!r} are malformed ({error!r})") from error
        return store

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the store as JSON, atomically.

        Raises:
            DatasetError: the file cannot be written.
        """
        masks = {
            image_id: [{"bbox": list(bbox), **(rle or {})} for bbox, rle in entries]
            for image_id, entries in self._entries.items()
        }
        content = {"format": FORMAT, "dataset": self.dataset, "provider": self.provider, "masks": masks}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")

    def add(self, image_id: str, bbox: Sequence[float], mask: np.ndarray | None) -> None:
        """Adds a person's mask, replacing one of the same box.

        Args:
            image_id: name of the frame.
            bbox: (x0, y0, x1, y1) of the annotation, in pixels of the frame.
            mask: (height, width) of the frame, bool or 0/1; None if no mask could be made.
        """
        box = _box(bbox)
        entries = [entry for entry in self._entries.get(image_id, []) if entry[0] != box]
        self._entries[image_id] = [*entries, (box, None if mask is None else encode_rle(mask))]

    def has(self, image_id: str, bbox: Sequence[float]) -> bool:
        """Whether this person was added, with or without a mask."""
        return self._find(image_id, bbox) is not None

    def get(self, image_id: str, bbox: Sequence[float]) -> dict[str, Any] | None:
        """Mask of a person as COCO RLE over the whole frame, or None. Boxes match within one pixel."""
        entry = self._find(image_id, bbox)
        return None if entry is None or entry[1] is None else dict(entry[1])

    def attach(self, records: Iterable[dict[str, Any]]) -> int:
        """Adds `segmentation`, in place, to every annotation whose mask is in the store.

        Args:
            records: dataset records (boxes in XYXY_ABS).

        Returns:
            Number of annotations that got a mask.

        Raises:
            DatasetError: a mask belongs to a frame of another size.
        """
        attached = 0
        for record in records:
            if record["image_id"] not in self._entries:
                continue
            for annotation in record["annotations"]:
                rle = self.get(record["image_id"], annotation["bbox"])
                if rle is None:
                    continue
                if list(rle["size"]) != [record["height"], record["width"]]:
                    raise DatasetError(
                        f"mask of {record['image_id']} is for a frame of height x width {rle['size']}, but the frame "
                        f"has [{record['height']}, {record['width']}]; make the masks again with prepare_masks.py"
                    )
                annotation["segmentation"] = rle
                attached += 1
        return attached

    @property
    def frames(self) -> int:
        """Number of frames with entries."""
        return len(self._entries)

    def __len__(self) -> int:
        """Number of persons with a mask."""
        return sum(rle is not None for entries in self._entries.values() for _, rle in entries)

    def _find(self, image_id: str, bbox: Sequence[float]) -> tuple[Box, dict[str, Any] | None] | None:
        entries = self._entries.get(image_id)
        if not entries:
            return None
        moved = np.abs(np.array([box for box, _ in entries]) - np.asarray(bbox, dtype=np.float64)).max(axis=1)
        nearest = int(moved.argmin())
        return entries[nearest] if moved[nearest] <= BOX_TOLERANCE else None


def default_mask_file(dataset_name: str) -> Path:
    """Default mask file of a dataset: $DETECTRON2_DATASETS/masks/<dataset_name>.json."""
    return dataset_root() / "masks" / f"{dataset_name}.json"


def attach_masks(records: Sequence[dict[str, Any]], dataset_name: str, paths: Sequence[str] = ()) -> None:
    """Adds the foreground masks of a dataset to its annotations, in place, and logs their number.

    Args:
        records: dataset records; an existing `segmentation` is kept if the files have no mask for it.
        dataset_name: name of the dataset, for messages and the default mask file.
        paths: mask files (INPUT.PERSON_MASKS). If empty, the default file is used if it exists, else crops stay
            unmasked.

    Raises:
        DatasetError: a file of `paths` is missing, or a file is damaged or made for other frames.
    """
    files = [Path(path).expanduser() for path in paths]
    if not files and default_mask_file(dataset_name).exists():
        files = [default_mask_file(dataset_name)]
    for file in files:
        store = MaskStore.load(file)
        try:
            store.attach(records)
        except DatasetError as error:
            raise DatasetError(f"mask file {file}: {error}") from error
    persons = [a for record in records for a in record["annotations"] if not a.get("iscrowd", 0)]
    masked = sum("segmentation" in annotation for annotation in persons)
    if masked == 0:
        logger.warning(
            "%s: no foreground masks (%s); persons are cropped with their background. To make masks, run "
            "datasets/prepare_masks.py",
            dataset_name,
            ", ".join(map(str, files)) or f"{default_mask_file(dataset_name)} does not exist",
        )
    else:
        rest = len(persons) - masked
        logger.info(
            "%s: %d of %d persons have a foreground mask%s", dataset_name, masked, len(persons),
            f"; the other {rest} are cropped with their background" if rest else "",
        )  # fmt: skip


def box_window(box: Sequence[float], height: int, width: int, margin: float = 0.0) -> tuple[slice, slice]:
    """Pixels of a frame touched by a box.

    Args:
        box: (x0, y0, x1, y1) in pixels.
        height, width: size of the frame.
        margin: fraction of the box's sides by which to widen it on each side first.

    Returns:
        Rows and columns, empty if the box is outside the frame.
    """
    x0, y0, x1, y1 = (float(value) for value in box)
    dx, dy = margin * (x1 - x0), margin * (y1 - y0)
    top, left = max(math.floor(y0 - dy), 0), max(math.floor(x0 - dx), 0)
    bottom, right = min(math.ceil(y1 + dy), height), min(math.ceil(x1 + dx), width)
    return slice(top, max(bottom, top)), slice(left, max(right, left))


def limit_to_box(mask: np.ndarray, box: Sequence[float]) -> np.ndarray | None:
    """Mask, bool (height, width), cleared outside its box; None if too little of it is left."""
    window = box_window(box, *mask.shape)
    limited = np.zeros(mask.shape, dtype=bool)
    limited[window] = mask[window]
    return limited if limited.sum() > MIN_FOREGROUND * mask[window].size else None


class EmptyMaskError(DatasetError):
    """A mask is empty: its polygons have no area. Its person is cropped with the background."""


def mask_of_annotation(segmentation: Any, height: int | None, width: int | None, where: str) -> dict[str, Any] | None:
    """Run lengths over the frame of the `segmentation` of a COCO annotation.

    Args:
        segmentation: run lengths, list of polygons, one polygon as a flat list of coordinates, or nothing.
        height, width: size of the frame in pixels; None if unknown, for images that cannot be read.
        where: prefix of error messages.

    Returns:
        {"size": [height, width], "counts"}; None if there is nothing.

    Raises:
        EmptyMaskError: no polygon has three points.
        DatasetError: it is neither polygons nor run lengths, or made for a frame of another size.
    """
    if segmentation in (None, "", [], {}) or height is None or width is None:
        return None
    size = [height, width]
    try:
        if isinstance(segmentation, list):
            return mask_util.merge(mask_util.frPyObjects(_polygons(segmentation, where), *size))
        if list(segmentation["size"]) != size:
            raise ValueError(f"its size is {segmentation['size']}, that of the frame is {size}")
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *size)
        return {"size": size, "counts": segmentation["counts"]}
    except EmptyMaskError:
        raise
    except Exception as error:  # pycocotools raises bare exceptions
        raise DatasetError(f"{where}: 'segmentation' is neither polygons nor run lengths ({error})") from None


def _polygons(segmentation: list[Any], where: str) -> list[list[float]]:
    """Polygons with an area; a flat list is one polygon."""
    flat = all(isinstance(value, int | float) and not isinstance(value, bool) for value in segmentation)
    polygons = [[float(value) for value in polygon] for polygon in ([segmentation] if flat else segmentation)]
    odd = [polygon for polygon in polygons if len(polygon) % 2]
    if odd:
        raise ValueError(f"a polygon has {len(odd[0])} coordinates, expected x and y of each point")
    usable = [polygon for polygon in polygons if len(polygon) >= 6 and all(map(math.isfinite, polygon))]
    if not usable:
        points = max(len(polygon) // 2 for polygon in polygons)
        raise EmptyMaskError(f"{where}: its polygon has {points} points, and an area needs three of finite coordinates")
    return usable


def encode_rle(mask: np.ndarray) -> dict[str, Any]:
    """COCO RLE, in JSON types, of a (height, width) mask, bool or 0/1."""
    rle = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_columns(rle: Mapping[str, Any], x0: int, x1: int) -> np.ndarray:
    """Columns x0 <= x < x1 of a mask.

    COCO's runs are column-major, so the columns of a box are contiguous; decoding only them is some 40 times faster
    than decoding a frame of 1920 x 1080 and cropping it.

    Args:
        rle: COCO RLE, {"size": [height, width], "counts": str, bytes or list of run lengths}.
        x0, x1: 0 <= x0 <= x1 <= width.

    Returns:
        bool (height, x1 - x0).

    Raises:
        DatasetError: the runs are damaged or do not fill the frame (pycocotools would return random memory).
    """
    height = int(rle["size"][0])
    ends = np.cumsum(run_lengths(rle)).clip(x0 * height, x1 * height)
    runs = np.diff(ends, prepend=x0 * height)
    foreground = np.arange(len(runs)) % 2 == 1
    return np.repeat(foreground, runs).reshape(x1 - x0, height).T


def run_lengths(rle: Mapping[str, Any]) -> np.ndarray:
    """Run lengths of a COCO RLE, background first: int64, height * width in total.

    In the string form, a number is a group of 6-bit characters starting at "0": five bits of the number each, lowest
    first, and a continuation bit; the highest bit is the sign. From the fourth number on, each is the difference from
    the number two places before.

    Raises:
        DatasetError: the runs are damaged or do not fill the frame.
    """
    try:
        height, width = (int(side) for side in rle["size"])
        counts = rle["counts"]
        runs = _unpack(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, dtype=np.int64)
        valid = runs.ndim == 1 and bool((runs >= 0).all()) and int(runs.sum()) == height * width
    except (KeyError, TypeError, ValueError) as error:
        raise DatasetError(f"segmentation is not a COCO run-length encoding of a mask ({error!r})") from error
    if not valid:
        raise DatasetError(f"segmentation is damaged: its runs do not fill the frame of {height} x {width} pixels")
    return runs


def _unpack(counts: str | bytes) -> np.ndarray:
    data = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8)
    digits = data.astype(np.int64) - 48
    if digits.size == 0 or digits.min() < 0 or digits.max() > 63 or digits[-1] & 32:
        raise ValueError("bad characters in 'counts'")
    last = np.flatnonzero((digits & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    length = last - first + 1
    if length.max() > 12:
        raise ValueError("a run in 'counts' is longer than any frame")
    place = np.arange(digits.size) - np.repeat(first, length)
    runs = np.add.reduceat((digits & 31) << (5 * place), first)
    runs -= np.where(digits[last] & 16, np.int64(1) << (5 * length), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def _box(bbox: Sequence[float]) -> Box:
    x0, y0, x1, y1 = (float(value) for value in bbox)
    return x0, y0, x1, y1


def _parse_entry(entry: Mapping[str, Any]) -> tuple[Box, dict[str, Any] | None]:
    if "counts" not in entry:
        return _box(entry["bbox"]), None
    height, width = (int(side) for side in entry["size"])
    return _box(entry["bbox"]), {"size": [height, width], "counts": str(entry["counts"])}
