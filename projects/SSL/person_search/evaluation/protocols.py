"""Search problems from dataset records, a search protocol and the model's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.records import Gallery, SearchProtocol
from ..errors import ConfigError, DatasetError
from ..values import check_value
from .detections import box_iou
from .problem import (
    Galleries,
    SearchProblem,
    frame_gap_galleries,
    full_set,
    offsets_of,
    own_frame_galleries,
    with_galleries,
)

CUHK_SYSU_SIZES = ("50", "100", "500", "1000", "2000", "4000")
_XYXY_ABS = 0  # BoxMode.XYXY_ABS


@dataclass(frozen=True)
class ImageOutput:
    """Outputs of a model for a frame.

    Attributes:
        box: (n, 4) float32 xyxy, pixels of the original frame.
        score: (n,) float32.
        feature: (n, d) float32, unit length.
        given_feature: (R, d) float32, unit length, of the boxes from `given_boxes_by_image`, for "ground_truth" or for
            the gallery in use.
    """

    box: np.ndarray
    score: np.ndarray
    feature: np.ndarray
    given_feature: np.ndarray


def given_boxes_by_image(
    records: Sequence[Mapping[str, Any]], protocol: SearchProtocol, gallery: str = "detections"
) -> dict[str, np.ndarray]:
    """Boxes of each frame that the model must compute features of, in addition to its detections.

    These are the boxes of the frame's queries, in the order of the protocol, then, for a gallery of ground-truth boxes,
    those of its annotations, in the order of the record.

    Args:
        records: dataset records of the test frames.
        protocol: protocol with the queries.
        gallery: "detections" or "ground_truth".

    Returns:
        (R, 4) float32 xyxy in pixels of the original frame by image_id, for every record (R may be 0).

    Raises:
        DatasetError: a query's frame is not among the records; the message names the query.
        ConfigError: `gallery` is unknown.
    """
    check_value("TEST.PERSON_SEARCH.GALLERY", gallery)
    boxes: dict[str, list[Sequence[float]]] = {record["image_id"]: [] for record in records}
    for number, query in enumerate(protocol.queries):
        if query.image_id not in boxes:
            raise DatasetError(_absent_frame(number, query.image_id, query.person_id, len(records)))
        boxes[query.image_id].append(query.bbox)
    if gallery == "ground_truth":
        for record in records:
            boxes[record["image_id"]] += [_xyxy(annotation, record) for annotation in record["annotations"]]
    return {name: np.array(rows, np.float32).reshape(-1, 4) for name, rows in boxes.items()}


def query_rows(protocol: SearchProtocol) -> np.ndarray:
    """Row of each query, (Q,) int64, among the given boxes of its frame (see `given_boxes_by_image`)."""
    seen: Counter[str] = Counter()
    rows = np.zeros(len(protocol.queries), np.int64)
    for number, query in enumerate(protocol.queries):
        rows[number] = seen[query.image_id]
        seen[query.image_id] += 1
    return rows


def build_problem(
    records: Sequence[Mapping[str, Any]],
    protocol: SearchProtocol,
    outputs: Mapping[str, ImageOutput],
    *,
    query_feature: str = "ground_truth",
    gallery: str = "detections",
    cross_camera: bool | None = None,
    min_frame_gap: int = 0,
    score_threshold: float = 0.5,
) -> SearchProblem:
    """Search problem of a test set.

    Galleries depend on `protocol.kind`: "prw": "all_cameras" and "cross_camera"; "cuhk_sysu": those of the protocol, by
    ascending size, and "full"; "custom": "all_frames" and, with a minimum gap of N frames, "frame_gap_<N>", or those of
    the protocol if it has any.

    Args:
        records: dataset records of all test frames.
        protocol: queries and galleries.
        outputs: the model's outputs by image_id, for every record.
        query_feature: feature of a query, from its "ground_truth" box (SeqNet, NAE) or from the "detection" with the
            highest IoU with it (CGPS, PSTR). A query that no detection overlaps then has no feature: zeros.
        gallery: "detections", or "ground_truth" boxes with score 1.
        cross_camera: whether to search other cameras alone as well; None for PRW only.
        min_frame_gap: minimum gap in frames of an additional gallery without the query's neighbors; 0 for none.
        score_threshold: minimum score of a detection that gives a query feature.

    Raises:
        DatasetError: a frame of a query or a gallery is not among the records, a record has no output, an output does
            not fit the given boxes, or cameras are needed and unknown.
        ConfigError: query_feature or gallery is unknown, or frames lack the numbers that a gap needs.
    """
    check_value("TEST.PERSON_SEARCH.QUERY_FEATURE", query_feature)
    check_frame_gap(min_frame_gap, records, protocol)
    given = given_boxes_by_image(records, protocol, gallery)
    _check_outputs(given, given_boxes_by_image(records, protocol, "ground_truth"), outputs)
    problem = _without_galleries(records, protocol, outputs, gallery)
    if query_feature == "detection":
        problem = replace(problem, query_feature=_feature_of_best_detection(problem, score_threshold))
    problem = _add_galleries(problem, protocol, cross_camera)
    if not min_frame_gap:
        return problem
    numbers = np.array([record["frame_number"] for record in records], np.int64)
    far = {f"frame_gap_{min_frame_gap}": frame_gap_galleries(problem, numbers, min_frame_gap)}
    return with_galleries(problem, {**problem.galleries, **far}, problem.main_gallery)


def _without_galleries(
    records: Sequence[Mapping[str, Any]], protocol: SearchProtocol, outputs: Mapping[str, ImageOutput], gallery: str
) -> SearchProblem:
    """Search problem with frames, annotations, queries with the features of their boxes, and the boxes to search."""
    ground_truth: dict[str, Any] = _ground_truth(records)
    frame_of = {record["image_id"]: frame for frame, record in enumerate(records)}
    ordered = [outputs[record["image_id"]] for record in records]
    query_frame = np.array([frame_of[query.image_id] for query in protocol.queries], np.int64)
    feature = [ordered[frame].given_feature[row] for frame, row in zip(query_frame, query_rows(protocol), strict=True)]
    found: dict[str, Any] = (
        _searched_boxes(ordered, query_frame, ground_truth) if gallery == "ground_truth" else _detections(ordered)
    )
    dimension = found["det_feature"].shape[1] if len(found["det_feature"]) or not feature else len(feature[0])
    cameras = [record.get("camera_id") for record in records]
    return SearchProblem(
        **found | {"det_feature": found["det_feature"].reshape(len(found["det_feature"]), dimension)},
        **ground_truth,
        frame_name=tuple(frame_of),
        query_frame=query_frame,
        query_box=np.array([query.bbox for query in protocol.queries], np.float64).reshape(-1, 4),
        query_person_id=np.array([query.person_id for query in protocol.queries], np.int64),
        query_feature=np.array(feature, np.float32).reshape(len(feature), dimension),
        frame_camera=None if None in cameras else np.array(cameras, np.int64),
    )


def check_frame_gap(least: int, records: Sequence[Mapping[str, Any]], protocol: SearchProtocol) -> None:
    """Checks that a minimum gap between the frames of query and gallery is possible.

    Raises:
        ConfigError: it is negative, the dataset lists its galleries, or frames have no number.
    """
    key = f"TEST.PERSON_SEARCH.MIN_FRAME_GAP is {least}"
    check_value("TEST.PERSON_SEARCH.MIN_FRAME_GAP", least)
    if least and protocol.kind != "custom" or least and protocol.galleries:
        raise ConfigError(f"{key}, but the galleries of {protocol.kind} are fixed by its protocol: set it to 0")
    unnumbered = next((record for record in records if "frame_number" not in record), None) if least else None
    if unnumbered is not None:
        raise ConfigError(
            f"{key}, but frame {unnumbered['image_id']} has no number in a video, as frames of MOT sequences have: set "
            "it to 0"
        )


def listed_galleries(galleries: Sequence[Gallery], frame_of: Mapping[str, int], source: str) -> Galleries:
    """Galleries of CUHK-SYSU, where a protocol file lists frames and the person's boxes for each query.

    A frame listed twice is searched once. As in SeqNet's `eval_search_cuhk`, it still counts as two matches if it shows
    the person (TestG100 has four such queries).

    Args:
        galleries: one for each query.
        frame_of: index of a frame by name.
        source: name of the source for error messages, for example the protocol file.

    Raises:
        DatasetError: a gallery names a frame that is not in `frame_of`, or has a box in a frame that it does not list.
    """
    frames: list[np.ndarray] = []
    target_frames: list[int] = []
    target_boxes: list[Sequence[float]] = []
    target_count: list[int] = []
    for query, gallery in enumerate(galleries):
        unlisted = gallery.boxes.keys() - gallery.image_ids
        try:
            listed = np.fromiter(map(frame_of.__getitem__, dict.fromkeys(gallery.image_ids)), np.int32)
        except KeyError as error:
            raise DatasetError(
                f"{source}: query {query} is searched in frame {error.args[0]}, which is not among the "
                f"{len(frame_of)} frames of the test set"
            ) from error
        if unlisted:
            raise DatasetError(f"{source}: query {query} has a box in {min(unlisted)}, which its gallery does not list")
        frames.append(listed)
        target_frames += [frame_of[name] for name in gallery.boxes]
        target_boxes += gallery.boxes.values()
        target_count.append(len(gallery.boxes) + _listed_again(gallery))
    return Galleries(
        target_offset=offsets_of([len(gallery.boxes) for gallery in galleries]),
        target_frame=np.array(target_frames, np.int64),
        target_box=np.array(target_boxes, np.float64).reshape(-1, 4),
        target_count=np.array(target_count, np.int64),
        frame_offset=offsets_of([len(listed) for listed in frames]),
        frame=np.concatenate([np.zeros(0, np.int32), *frames]),
    )


def _listed_again(gallery: Gallery) -> int:
    """Number of repeated listings of frames with the person."""
    if len(set(gallery.image_ids)) == len(gallery.image_ids):
        return 0
    return sum(name in gallery.boxes for name in gallery.image_ids) - len(gallery.boxes)


def _add_galleries(problem: SearchProblem, protocol: SearchProtocol, cross_camera: bool | None) -> SearchProblem:
    if protocol.kind not in ("prw", "cuhk_sysu", "custom"):
        raise DatasetError(f"search protocol: kind is {protocol.kind!r}, expected prw, cuhk_sysu or custom")
    if not protocol.galleries:
        if protocol.kind == "cuhk_sysu":
            raise DatasetError("search protocol of CUHK-SYSU: no gallery; expected TestG50.mat to TestG4000.mat")
        name = "all_cameras" if protocol.kind == "prw" else "all_frames"
        galleries = {name: own_frame_galleries(problem, cross_camera=False)}
        if cross_camera or (cross_camera is None and protocol.kind == "prw"):
            galleries["cross_camera"] = own_frame_galleries(problem, cross_camera=True)
        return with_galleries(problem, galleries)
    if cross_camera:
        raise ConfigError("cross_camera does not go with galleries that are listed by the protocol (CUHK-SYSU)")
    galleries = {}
    frame_of = {name: frame for frame, name in enumerate(problem.frame_name)}
    for name in sorted(protocol.galleries, key=lambda name: (not name.isdigit(), len(name), name)):
        rows = protocol.galleries[name]
        if len(rows) != len(protocol.queries):
            raise DatasetError(f"gallery {name}: is for {len(rows)} queries, the protocol has {len(protocol.queries)}")
        galleries[name] = listed_galleries(rows, frame_of, f"gallery {name}")
    if protocol.kind == "cuhk_sysu":
        galleries["full"] = full_set(problem.query_frame, next(iter(galleries.values())))
    return with_galleries(problem, galleries, "100" if "100" in galleries else "")


def _check_outputs(
    given: Mapping[str, np.ndarray], given_and_annotated: Mapping[str, np.ndarray], outputs: Mapping[str, ImageOutput]
) -> None:
    for name, boxes in given.items():
        output = outputs.get(name)
        if output is None:
            raise DatasetError(
                f"frame {name} was not evaluated: the model returned outputs for {len(outputs)} of "
                f"{len(given)} frames; metrics over some frames would be wrong"
            )
        # Annotated boxes come last, so features of more boxes than needed start with the needed ones.
        if len(output.given_feature) not in (len(boxes), len(given_and_annotated[name])):
            raise DatasetError(
                f"frame {name}: the model returned features of {len(output.given_feature)} given boxes, "
                f"expected {len(boxes)} (queries and, if searched, ground-truth boxes)"
            )


def _ground_truth(records: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    boxes = [_xyxy(annotation, record) for record in records for annotation in record["annotations"]]
    persons = [annotation.get("person_id", -1) for record in records for annotation in record["annotations"]]
    return {
        "gt_frame": np.repeat(np.arange(len(records)), [len(record["annotations"]) for record in records]),
        "gt_box": np.array(boxes, np.float64).reshape(-1, 4),
        "gt_person_id": np.array(persons, np.int64),
    }


def _detections(outputs: Sequence[ImageOutput]) -> dict[str, np.ndarray]:
    return {
        "det_frame": np.repeat(np.arange(len(outputs)), [len(output.score) for output in outputs]),
        "det_box": np.concatenate([np.zeros((0, 4), np.float32), *(output.box for output in outputs)]),
        "det_score": np.concatenate([np.zeros(0, np.float32), *(output.score for output in outputs)]),
        "det_feature": _stacked([output.feature for output in outputs]),
    }


def _searched_boxes(
    outputs: Sequence[ImageOutput], query_frame: np.ndarray, ground_truth: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Ground-truth boxes instead of detections; their features follow those of the frame's queries."""
    queries = np.bincount(query_frame, minlength=len(outputs))
    return {
        "det_frame": ground_truth["gt_frame"],
        "det_box": ground_truth["gt_box"],
        "det_score": np.ones(len(ground_truth["gt_frame"]), np.float32),
        "det_feature": _stacked([output.given_feature[count:] for output, count in zip(outputs, queries, strict=True)]),
    }


def _stacked(features: Sequence[np.ndarray]) -> np.ndarray:
    filled = [feature for feature in features if len(feature)]
    return np.concatenate(filled) if filled else np.zeros((0, 0), np.float32)


def _feature_of_best_detection(problem: SearchProblem, score_threshold: float) -> np.ndarray:
    """Features (Q, d) of the detections with the highest IoU with the query boxes (the first of equal ones)."""
    features = np.zeros_like(problem.query_feature)
    kept = np.flatnonzero(problem.det_score >= score_threshold)
    kept = kept[np.argsort(problem.det_frame[kept], kind="stable")]
    offset = offsets_of(np.bincount(problem.det_frame[kept], minlength=len(problem.frame_name)))
    for query, frame in enumerate(problem.query_frame):
        seen = kept[offset[frame] : offset[frame + 1]]
        iou = box_iou(problem.det_box[seen], np.broadcast_to(problem.query_box[query], (len(seen), 4)))
        if iou.any():
            features[query] = problem.det_feature[seen[iou.argmax()]]
    return features


def _xyxy(annotation: Mapping[str, Any], record: Mapping[str, Any]) -> Sequence[float]:
    if annotation.get("bbox_mode", _XYXY_ABS) != _XYXY_ABS or len(annotation["bbox"]) != 4:
        raise DatasetError(f"record {record['image_id']}: box {annotation['bbox']} is not of BoxMode.XYXY_ABS")
    return annotation["bbox"]


def _absent_frame(number: int, image_id: str, person_id: int, num_records: int) -> str:
    return (
        f"query {number} (person {person_id}) is of frame {image_id}, which is not among the {num_records} frames of "
        "the test set; queries and frames must come from the same dataset"
    )
