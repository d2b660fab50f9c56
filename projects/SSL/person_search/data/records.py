"""Dataset records and search protocols: the one place where boxes are cleaned and frames and queries are checked."""

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
    """One person to search for.

    Attributes:
        image_id: the frame that shows the person (the `image_id` of a dataset record).
        bbox: (x0, y0, x1, y1) in pixels of that frame.
        person_id: identity, >= 0.
    """

    image_id: str
    bbox: BoxXYXY
    person_id: int


@dataclass(frozen=True)
class Gallery:
    """The frames in which one query is searched, where a protocol file fixes them (CUHK-SYSU).

    Attributes:
        image_ids: the frames, in the order of the protocol file.
        boxes: for each of those frames that shows the person, the box (x0, y0, x1, y1) in pixels.
    """

    image_ids: tuple[str, ...]
    boxes: Mapping[str, BoxXYXY]


@dataclass(frozen=True)
class SearchProtocol:
    """The search task of one test set.

    Attributes:
        kind: "prw" (all cameras and cross-camera), "cuhk_sysu" (galleries from protocol files) or
            "custom" (every frame but the query's own).
        queries: the persons to search for.
        galleries: gallery name (for example "100") -> one Gallery for each query. Empty where every query is
            searched in all frames but its own and the ground truth comes from the annotations.
        no_search: why there is no query, for sets that can be used to measure detection alone.
    """

    kind: str
    queries: tuple[Query, ...]
    galleries: Mapping[str, tuple[Gallery, ...]] = field(default_factory=dict)
    no_search: str = ""


logger = logging.getLogger(__name__)

UNLABELLED = -1
MIN_SIDE = 1.0  # pixels: what is narrower than one pixel after clipping shows nobody

Record = dict[str, Any]


@dataclass(frozen=True)
class Person:
    """One annotated person as a reader found it.

    Attributes:
        bbox: (x0, y0, x1, y1) in pixels; may reach out of the frame.
        person_id: identity; any negative number means unlabelled.
        segmentation: the person's foreground mask over the frame as COCO run lengths {"size": [h, w], "counts"}.
    """

    bbox: BoxXYXY
    person_id: int = UNLABELLED
    segmentation: dict[str, Any] | None = None


@dataclass(frozen=True)
class Frame:
    """One frame as a reader found it.

    Attributes:
        file_name: absolute.
        image_id: unique in its dataset.
        height, width: in pixels; both None where the image cannot be read and nothing else tells them.
        persons: those annotated in it.
        camera_id: where it is known.
        number: place in its video, in frames, where it is one of a video.
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
    """Counts of what was cleaned, for one line in the log."""

    clipped: int = 0
    dropped: int = 0
    examples: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    boxes: list[BoxXYXY] = field(default_factory=list)
    frames: list[tuple[int, int]] = field(default_factory=list)  # (height, width) of the frame of each of them

    def check_fit(self, dataset: str) -> None:
        """Raises DatasetError, with the likely cause, where more than a few boxes do not fit their frames."""
        cause = misfit(self.boxes, self.frames)
        if cause is not None:
            raise DatasetError(f"{dataset}: {cause}")

    def report(self, dataset: str) -> None:
        if self.unreadable:
            message = (
                f"{dataset}: {len(self.unreadable)} images cannot be read (for example {self.unreadable[0]}): training "
                "skips them, evaluation refuses them"
            )
            say_once(logger, logging.WARNING, message)
        parts = []
        if self.dropped:
            parts.append(f"dropped {self.dropped} boxes that show nothing (for example {'; '.join(self.examples)})")
        if self.clipped:
            parts.append(f"clipped {self.clipped} boxes to their frame")
        if parts:
            say_once(logger, logging.WARNING if self.dropped else logging.INFO, f"{dataset}: {', '.join(parts)}")


_said: set[str] = set()


def say_once(to: logging.Logger, level: int, message: str) -> None:
    """Logs what there is to say about a data set the first time alone: a run reads each set several times."""
    if message not in _said:
        _said.add(message)
        to.log(level, "%s", message)


def clip_box(bbox: BoxXYXY, height: int, width: int) -> BoxXYXY | None:
    """The part of a box inside its frame.

    Args:
        bbox: (x0, y0, x1, y1) in pixels.
        height: of the frame, pixels.
        width: of the frame, pixels.

    Returns:
        (x0, y0, x1, y1) within [0, width] x [0, height], or None where a side of that part is shorter than
        `MIN_SIDE` or a coordinate is not finite.
    """
    x0, y0, x1, y1 = map(float, bbox)
    if not math.isfinite(x0 + y0 + x1 + y1):
        return None
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height))
    return (x0, y0, x1, y1) if x1 - x0 >= MIN_SIDE and y1 - y0 >= MIN_SIDE else None


FEW = 0.05  # share of the boxes that may misfit: annotators' slips, and persons at the edge who are drawn whole
FEWEST = 3  # boxes: fewer prove nothing
_REACHES_OUT = 0.1  # share of a box's area outside the frame from which on it reaches out
_SLIP = 1.0  # pixels


def misfit(boxes: Sequence[Sequence[float]], frames: Sequence[Sequence[int]]) -> str | None:
    """The likely cause of boxes that do not fit their frames, or None where no more than a few misfit.

    Persons at the edge whose boxes go on outside are common in some data sets, to the left as to the right. Not common
    are boxes that lie mostly outside, or that reach out on the right and never on the left.

    Args:
        boxes: A boxes (x0, y0, x1, y1) in pixels; those without sides or not finite are not looked at.
        frames: (height, width) of the frame of each.

    Returns:
        What is wrong, what it looks like and what to do, in one line.
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
            "all boxes lie within the first pixel of their frames: their coordinates look like shares of the frame, "
            "expected are pixels; multiply them by width and height"
        )
    start = corners[:, :2].clip(0, sizes)
    overlap = (corners[:, 2:].clip(0, sizes) - start).clip(0)
    outside = 1 - overlap.prod(axis=1) / sides.prod(axis=1)
    reaching, away = outside > _REACHES_OUT, outside > 0.5
    # Read as (x, y, width, height), a box whose "sides" are themselves corners within the frame.
    as_corners = (sides > corners[:, :2]).all(axis=1) & (sides <= sizes + _SLIP).all(axis=1)
    before = (corners[:, :2] < -_SLIP).any(axis=1)
    to_the_right = reaching & (corners[:, 2] > sizes[:, 0] + _SLIP)
    if _many(reaching) and as_corners.mean() > 1 - FEW:
        return (
            f"{reaching.sum()} of {len(corners)} boxes reach out of their frames, and the third and fourth number of "
            "nearly all are larger than the first and second: they look like corners [x0, y0, x1, y1] where "
            "[x, y, width, height] is expected; subtract"
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
            f"{count} of {len(corners)} boxes lie outside their frames ({example}): it looks as if the frames were "
            "made smaller after they were annotated; use the frames that the annotations were made on"
        )
    return (
        f"{count} of {len(corners)} boxes lie mostly outside their frames ({example}): they look like boxes of other "
        "frames; check which frames they belong to, or clip them if they are right"
    )


def _many(boxes: np.ndarray) -> bool:
    return bool(boxes.sum() >= FEWEST and boxes.mean() > FEW)


def build_records(dataset: str, frames: Iterable[Frame], strict: bool = False) -> list[Record]:
    """Detectron2's records of a dataset, checked, boxes clipped, memory bank rows numbered.

    Boxes are clipped to their frame; one of which less than a pixel is left is dropped and counted in one log line.
    More than a few boxes that do not fit at all are an error: then all boxes are likely to be wrong.
    A frame of unknown size is counted in another; it gets the size that its boxes reach to, so that its persons keep
    their bank rows until whoever loads the image skips or refuses it.

    Args:
        dataset: name, for messages.
        frames: what the reader found, in the order of the records.
        strict: a box that would be dropped is an error.

    Returns:
        One record for each frame: file_name, image_id, height, width, camera_id and frame_number (where known) and
        annotations, each with bbox (XYXY_ABS, floats), category_id 0, iscrowd 0, person_id (-1 unlabelled),
        instance_index (0..N-1 in record order) and, where given, segmentation.

    Raises:
        DatasetError: no frame at all, two frames of one name, a frame without a size, boxes that do not fit their
            frames (see `misfit`), or (strict) an unusable box.
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
    """Height and width of the smallest frame that holds all boxes, at least one pixel each."""
    corners = [p.bbox[2:] for p in persons if all(map(math.isfinite, p.bbox))]
    width, height = (max((math.ceil(corner[axis]) for corner in corners), default=1) for axis in (0, 1))
    return max(height, 1), max(width, 1)


def _annotations(
    dataset: str, frame: Frame, size: tuple[int, int], row: int, strict: bool, tally: _Tally
) -> list[dict[str, Any]]:
    """The annotations of one frame of size (height, width), bank rows counted from `row`."""
    annotations: list[dict[str, Any]] = []
    for number, person in enumerate(frame.persons):
        bbox = clip_box(person.bbox, *size)
        if bbox is None:
            where = f"box {number} of {frame.image_id}: {[round(float(v), 2) for v in person.bbox]}"
            if strict:
                raise DatasetError(
                    f"{dataset}: {where} (x0, y0, x1, y1) shows nothing of the frame of "
                    f"{frame.width} x {frame.height} pixels; mend the annotation or read without strict"
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
        annotations.append(annotation)
    return annotations


def check_queries(where: str, protocol: SearchProtocol, image_ids: Iterable[str]) -> SearchProtocol:
    """The protocol itself, once every query is known to lie in a frame of the dataset; `where` begins a message.

    Raises:
        DatasetError: there is no query, or a query's frame is not in `image_ids`; the message names it.
    """
    known = set(image_ids)
    if not protocol.queries:
        raise DatasetError(f"{where}: has no query; a query needs a person who appears in two frames or more")
    for number, query in enumerate(protocol.queries):
        if query.image_id not in known:
            raise DatasetError(
                f"{where}: query {number} (person {query.person_id}) lies in the frame {query.image_id!r}, "
                f"which is not one of the {len(known)} frames of the dataset"
            )
    return protocol


def chosen_queries(where: str, records: Sequence[Record], per_identity: int) -> SearchProtocol:
    """The protocol of a custom set that brings no queries; see `spread_queries`. `where` begins a message.

    Without anybody to search for it has no query, and says why: detection can still be measured.
    """
    queries = spread_queries(records, per_identity)
    if queries:
        return check_queries(where, SearchProtocol("custom", queries), (record["image_id"] for record in records))
    identified = any(annotation["person_id"] >= 0 for record in records for annotation in record["annotations"])
    reason = "no person with an identity is in two frames or more" if identified else "no person has an identity"
    return SearchProtocol("custom", (), no_search=reason)


def spread_queries(records: Sequence[Record], per_identity: int) -> tuple[Query, ...]:
    """Queries for a dataset that brings none: each identity under each camera, a few times.

    Taken are identities that appear in two frames or more (else there is nothing to find). The frames of an
    identity under one camera are cut into `per_identity` equal runs, the middle frame of each gives a query; where
    there are fewer frames each gives one. Of two boxes of one identity in a frame the first counts.

    Args:
        records: see `build_records`.
        per_identity: most queries of one identity under one camera, >= 1.

    Returns:
        Queries ordered by identity, camera, frame.
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
