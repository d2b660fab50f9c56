"""Dataset records and search protocols, with all checks of boxes, frames and queries."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from detectron2.structures import BoxMode

from ..errors import DatasetError

BoxXYXY = tuple[float, float, float, float]


@dataclass(frozen=True)
class Query:
    """A person to search for.

    Attributes:
        image_id: frame with the person (`image_id` of a dataset record).
        bbox: (x0, y0, x1, y1) in pixels of that frame.
        person_id: identity, >= 0.
    """

    image_id: str
    bbox: BoxXYXY
    person_id: int


@dataclass(frozen=True)
class Gallery:
    """Frames to search for a query, as defined by a protocol file (CUHK-SYSU).

    Attributes:
        image_ids: frames in the order of the protocol file.
        boxes: (x0, y0, x1, y1) in pixels by frame, for the frames that show the person.
    """

    image_ids: tuple[str, ...]
    boxes: Mapping[str, BoxXYXY]


@dataclass(frozen=True)
class SearchProtocol:
    """Search task of a test set.

    Attributes:
        kind: "prw" (all cameras and cross-camera), "cuhk_sysu" (galleries from protocol files) or "custom" (all frames
            but the query's own).
        queries: persons to search for.
        galleries: one Gallery per query, by gallery name (for example "100"). Empty if every query is searched in all
            frames but its own, with the annotations as ground truth.
        no_search: reason for having no queries, for datasets that only allow to evaluate detection.
    """

    kind: str
    queries: tuple[Query, ...]
    galleries: Mapping[str, tuple[Gallery, ...]] = field(default_factory=dict)
    no_search: str = ""


logger = logging.getLogger(__name__)

UNLABELLED = -1
MIN_SIDE = 1.0  # pixels; boxes narrower than that after clipping show nobody

Record = dict[str, Any]


@dataclass(frozen=True)
class Person:
    """Annotated person as read from a file.

    Attributes:
        bbox: (x0, y0, x1, y1) in pixels; may exceed the frame.
        person_id: identity; negative numbers mean unlabelled.
        segmentation: foreground mask over the frame as COCO run lengths {"size": [h, w], "counts"}; None if unknown.
        tracklet_id: tracklet assigned by a tracker without identities; negative numbers mean none.
    """

    bbox: BoxXYXY
    person_id: int = UNLABELLED
    segmentation: dict[str, Any] | None = None
    tracklet_id: int = UNLABELLED


@dataclass(frozen=True)
class Frame:
    """Frame as read from a file.

    Attributes:
        file_name: absolute path.
        image_id: name, unique in the dataset.
        height, width: size in pixels; None if the image cannot be read and the size is not known otherwise.
        persons: annotated persons.
        camera_id: camera; None if unknown.
        number: frame number in its video; None for other images.
    """

    file_name: str
    image_id: str
    height: int | None
    width: int | None
    persons: Sequence[Person] = ()
    camera_id: int | None = None
    number: int | None = None


@dataclass
class _Tally:
    """Counts of cleaned boxes and frames, for the log."""

    clipped: int = 0
    dropped: int = 0
    examples: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    boxes: list[BoxXYXY] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of the frame of each box

    def check_fit(self, dataset: str) -> None:
        """Raises a DatasetError, with the likely cause, if more than a few boxes do not fit their frames."""
        cause = misfit(self.boxes, self.frames)
        if cause is not None:
            raise DatasetError(f"{dataset}: {cause}")

    def report(self, dataset: str) -> None:
        if self.unreadable:
            message = (
                f"{dataset}: {len(self.unreadable)} images cannot be read (for example {self.unreadable[0]}): training "
                "skips them, evaluation fails on them"
            )
            say_once(logger, logging.WARNING, message)
        parts = []
        if self.dropped:
            examples = "; ".join(self.examples)
            parts.append(f"dropped {self.dropped} boxes that are empty or outside their frame (for example {examples})")
        if self.clipped:
            parts.append(f"clipped {self.clipped} boxes to their frame")
        if parts:
            say_once(logger, logging.WARNING if self.dropped else logging.INFO, f"{dataset}: {', '.join(parts)}")


_said: set[str] = set()


def say_once(to: logging.Logger, level: int, message: str) -> None:
    """Logs a message about a dataset once: a run reads each dataset several times."""
    if message not in _said:
        _said.add(message)
        to.log(level, "%s", message)


def clip_box(bbox: BoxXYXY, height: int, width: int) -> BoxXYXY | None:
    """Part of a box inside its frame.

    Args:
        bbox: (x0, y0, x1, y1) in pixels.
        height: height of the frame in pixels.
        width: width of the frame in pixels.

    Returns:
        (x0, y0, x1, y1) within [0, width] x [0, height]; None if a side is shorter than `MIN_SIDE` or a coordinate is
        not finite.
    """
    x0, y0, x1, y1 = map(float, bbox)
    if not math.isfinite(x0 + y0 + x1 + y1):
        return None
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    return (x0, y0, x1, y1) if x1 - x0 >= MIN_SIDE and y1 - y0 >= MIN_SIDE else None


FEW = 0.05  # fraction of boxes that may misfit: annotation errors, and persons drawn beyond the edge
FEWEST = 3  # minimum number of misfitting boxes
_REACHES_OUT = 0.1  # fraction of a box's area outside the frame above which it reaches out
_SLIP = 1.0  # pixels


def misfit(boxes: Sequence[Sequence[float]], frames: Sequence[Sequence[int]]) -> str | None:
    """Likely cause of boxes that do not fit their frames; None if at most a few misfit.

    Some datasets draw persons beyond the edges of the frame, on all sides alike. Boxes that lie mostly outside, or that
    reach out on the right and never on the left, point to an error.

    Args:
        boxes: A boxes (x0, y0, x1, y1) in pixels; empty and non-finite ones are ignored.
        frames: (height, width) of the frame of each box.

    Returns:
        One line on what is wrong, the likely cause, and what to do.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.asarray(frames, dtype=np.float64).reshape(-1, 2)[:, ::-1]  # (width, height)
    sides = corners[:, 2:] - corners[:, :2]
    usable = np.isfinite(corners).all(axis=1) & (sides > 0).all(axis=1)
    corners, sizes, sides = corners[usable], sizes[usable], sides[usable]
    if len(corners) < FEWEST:
        return None
    if (corners[:, 2:] <= 1.0 + 1e-6).all():
        return (
            "all boxes lie within the first pixel of their frames: their coordinates look like fractions of the frame, "
            "expected pixels; multiply them by width and height"
        )
    start = corners[:, :2].clip(0, sizes)
    overlap = (corners[:, 2:].clip(0, sizes) - start).clip(0)
    outside = 1 - overlap.prod(axis=1) / sides.prod(axis=1)
    reaching, away = outside > _REACHES_OUT, outside > 0.5
    # Read as (x, y, width, height), a box given by corners has "sides" that lie within the frame.
    as_corners = (sides > corners[:, :2]).all(axis=1) & (sides <= sizes + _SLIP).all(axis=1)
    before = (corners[:, :2] < -_SLIP).any(axis=1)
    to_the_right = reaching & (corners[:, 2] > sizes[:, 0] + _SLIP)
    if _many(reaching) and as_corners.mean() > 1 - FEW:
        return (
            f"{reaching.sum()} of {len(corners)} boxes reach out of their frames, and the third and fourth number of "
            "nearly all are larger than the first and second: they look like corners [x0, y0, x1, y1], expected "
            "[x, y, width, height]; subtract the first corner"
        )
    if not _many(away) and (before.any() or not _many(to_the_right)):
        return None
    largest = int((corners[:, 2:] / sizes).max(axis=1).argmax())
    example = (
        f"one reaches to {corners[largest, 2]:.0f}, {corners[largest, 3]:.0f} in a frame of "
        f"{sizes[largest, 0]:.0f} x {sizes[largest, 1]:.0f} pixels"
    )
    count = int((away | to_the_right).sum())
    if not before.any():
        return (
            f"{count} of {len(corners)} boxes lie outside their frames ({example}): the frames seem to have been "
            "downscaled after annotation; use the frames that were annotated"
        )
    return (
        f"{count} of {len(corners)} boxes lie mostly outside their frames ({example}): they look like boxes of "
        "other frames; check which frames they belong to, or clip them if they are right"
    )


def _many(boxes: np.ndarray) -> bool:
    return bool(boxes.sum() >= FEWEST and boxes.mean() > FEW)


def build_records(dataset: str, frames: Iterable[Frame], strict: bool = False) -> list[Record]:
    """Detectron2 records of a dataset, checked, with clipped boxes and numbered bank rows.

    Boxes are clipped to their frame; if less than a pixel is left, they are dropped and counted in one log line. If
    more than a few boxes do not fit at all, all boxes are likely to be wrong, which is an error. Frames of unknown size
    are counted as well; they get the size that their boxes extend to, so that their persons keep their bank rows until
    the image is loaded and skipped or rejected.

    Args:
        dataset: name of the dataset, for messages.
        frames: frames in the order of the records.
        strict: raise an error for a box that would be dropped.

    Returns:
        One record per frame: file_name, image_id, height, width, camera_id and frame_number (if known) and annotations,
        each with bbox (XYXY_ABS, floats), category_id 0, iscrowd 0, person_id (-1 unlabelled), instance_index (0..N-1
        in record order) and, if given, segmentation and tracklet_id.

    Raises:
        DatasetError: there are no frames, two frames have the same name, a frame has no size, boxes do not fit their
            frames (see `misfit`), or (strict) a box is empty or outside its frame.
    """
    records: list[Record] = []
    seen: dict[str, str] = {}
    tally, row = _Tally(), 0
    for frame in frames:
        if frame.image_id in seen:
            raise DatasetError(
                f"{dataset}: two frames are named {frame.image_id!r} ({seen[frame.image_id]} and {frame.file_name}); "
                "names must be unique in a dataset"
            )
        seen[frame.image_id] = frame.file_name
        if frame.height is None or frame.width is None:
            tally.unreadable.append(frame.file_name)
            height, width = _reach(frame.persons)
        else:
            height, width = frame.height, frame.width
            tally.boxes += [person.bbox for person in frame.persons]
            tally.frames += [(height, width)] * len(frame.persons)
        if height < 1 or width < 1:
            raise DatasetError(f"{dataset}: frame {frame.image_id!r} has the size {width} x {height}")
        annotations = _annotations(dataset, frame, (height, width), row, strict, tally)
        row += len(annotations)
        record = {
            "file_name": frame.file_name,
            "image_id": frame.image_id,
            "height": height,
            "width": width,
            "annotations": annotations,
        }
        if frame.camera_id is not None:
            record["camera_id"] = frame.camera_id
        if frame.number is not None:
            record["frame_number"] = frame.number
        records.append(record)
    if not records:
        raise DatasetError(f"{dataset}: has no frame")
    tally.check_fit(dataset)
    tally.report(dataset)
    return records


def _reach(persons: Sequence[Person]) -> tuple[int, int]:
    """Height and width of the smallest frame that contains all boxes, at least one pixel each."""
    corners = [p.bbox[2:] for p in persons if all(map(math.isfinite, p.bbox))]
    width, height = (max((math.ceil(corner[axis]) for corner in corners), default=1) for axis in (0, 1))
    return max(height, 1), max(width, 1)


def _annotations(
    dataset: str, frame: Frame, size: tuple[int, int], row: int, strict: bool, tally: _Tally
) -> list[dict[str, Any]]:
    """Annotations of a frame of size (height, width), with bank rows from `row` on."""
    annotations: list[dict[str, Any]] = []
    for number, person in enumerate(frame.persons):
        bbox = clip_box(person.bbox, *size)
        if bbox is None:
            where = f"box {number} of {frame.image_id}: {[round(float(v), 2) for v in person.bbox]}"
            if strict:
                raise DatasetError(
                    f"{dataset}: {where} (x0, y0, x1, y1) is empty or outside the frame of "
                    f"{frame.width} x {frame.height} pixels; fix the annotation or read without strict"
                )
            tally.dropped += 1
            if len(tally.examples) < 3:
                tally.examples.append(where)
            continue
        tally.clipped += bbox != tuple(person.bbox)
        annotation = {
            "bbox": list(bbox),
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "iscrowd": 0,
            "person_id": max(int(person.person_id), UNLABELLED),
            "instance_index": row + len(annotations),
        }
        if person.segmentation is not None:
            annotation["segmentation"] = person.segmentation
        if person.tracklet_id >= 0:
            annotation["tracklet_id"] = int(person.tracklet_id)
        annotations.append(annotation)
    return annotations


def check_queries(where: str, protocol: SearchProtocol, image_ids: Iterable[str]) -> SearchProtocol:
    """The given protocol, after a check that every query lies in a frame of the dataset.

    Args:
        where: prefix of error messages.
        protocol: protocol to check.
        image_ids: frames of the dataset.

    Raises:
        DatasetError: there are no queries, or a query's frame is not in `image_ids`; the message names it.
    """
    known = set(image_ids)
    if not protocol.queries:
        raise DatasetError(f"{where}: has no queries; a query needs a person who appears in two frames or more")
    for number, query in enumerate(protocol.queries):
        if query.image_id not in known:
            raise DatasetError(
                f"{where}: query {number} (person {query.person_id}) lies in the frame {query.image_id!r}, "
                f"which is not one of the {len(known)} frames of the dataset"
            )
    return protocol


def chosen_queries(where: str, records: Sequence[Record], per_identity: int) -> SearchProtocol:
    """Protocol of a custom dataset without given queries, see `spread_queries`. `where` is a prefix of messages.

    If no person can be searched for, the protocol has no queries and gives the reason; detection can still be
    evaluated.
    """
    queries = spread_queries(records, per_identity)
    if queries:
        return check_queries(where, SearchProtocol("custom", queries), (record["image_id"] for record in records))
    identified = any(annotation["person_id"] >= 0 for record in records for annotation in record["annotations"])
    reason = "no person with an identity is in two frames or more" if identified else "no person has an identity"
    return SearchProtocol("custom", (), no_search=reason)


def spread_queries(records: Sequence[Record], per_identity: int) -> tuple[Query, ...]:
    """Queries for a dataset without given ones: a few of each identity under each camera.

    Only identities that appear in two frames or more are used. The frames of an identity under a camera are split into
    `per_identity` equal runs, and the middle frame of each gives a query; if there are fewer frames, each gives one. Of
    two boxes of one identity in a frame, the first counts.

    Args:
        records: see `build_records`.
        per_identity: maximum number of queries per identity and camera, >= 1.

    Returns:
        Queries ordered by identity, camera and frame.
    """
    frames_of: dict[int, dict[str, tuple[int, BoxXYXY]]] = {}
    for record in records:
        for annotation in record["annotations"]:
            if annotation["person_id"] != UNLABELLED:
                found = (record.get("camera_id", -1), tuple(annotation["bbox"]))
                frames_of.setdefault(annotation["person_id"], {}).setdefault(record["image_id"], found)
    queries = []
    for person_id in sorted(pid for pid, frames in frames_of.items() if len(frames) > 1):
        cameras: dict[int, list[Query]] = {}
        for image_id, (camera, bbox) in frames_of[person_id].items():
            cameras.setdefault(camera, []).append(Query(image_id, bbox, person_id))
        for camera in sorted(cameras):
            of_camera = cameras[camera]
            count = min(per_identity, len(of_camera))
            queries += [of_camera[(2 * i + 1) * len(of_camera) // (2 * count)] for i in range(count)]
    return tuple(queries)
