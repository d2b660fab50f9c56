"""Search problems: all inputs of the metrics of person search, as plain arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike

from ..errors import DatasetError


def offsets_of(count: ArrayLike) -> np.ndarray:
    """Offsets (n + 1,) int64 of n rows with the given lengths (n,)."""
    count = np.asarray(count, np.int64)
    offset = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=offset[1:])
    return offset


def ranges(start: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Concatenated integers `start[i], ..., start[i] + count[i] - 1` of all i.

    Args:
        start: (n,) integer.
        count: (n,) integer, >= 0.

    Returns:
        (sum of count,) int64.
    """
    end = np.cumsum(count)
    total = int(end[-1]) if len(end) else 0
    return np.arange(total) + np.repeat(start - (end - count), count)


def pairs(start: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a range and an integer in it, see `ranges`.

    Returns:
        (P,) int64, the range, and (P,) int64, the integer; sorted by range, then integer.
    """
    return np.repeat(np.arange(len(count)), count), ranges(start, count)


@dataclass(frozen=True)
class Galleries:
    """Gallery of each of Q queries. Frames are indices into the frames of a `SearchProblem`.

    Attributes:
        target_offset: (Q + 1,) int64; targets of query q are the rows `target_offset[q]:target_offset[q + 1]`.
        target_frame: (T,) int64, frames of the gallery that show the person, once per query.
        target_box: (T, 4) float64 (x0, y0, x1, y1) in pixels, the person's box there.
        target_count: (Q,) int64, number of matches, the denominator of recall. It exceeds the number of targets if a
            protocol file lists a frame of the person twice.
        frame_offset: (Q + 1,) int64 and
        frame: (M,) integer: listed frames of query q, without duplicates, are
            `frame[frame_offset[q]:frame_offset[q + 1]]`. Both None: all frames but `excluded_frame`.
        excluded_frame: (Q,) int64, frame not to be searched if no frames are listed; -1 for none.
        other_cameras_only: whether to exclude the frames of the query's camera as well. Not for listed frames.
    """

    target_offset: np.ndarray
    target_frame: np.ndarray
    target_box: np.ndarray
    target_count: np.ndarray
    frame_offset: np.ndarray | None = None
    frame: np.ndarray | None = None
    excluded_frame: np.ndarray | None = None
    other_cameras_only: bool = False

    def check(self, name: str, num_queries: int, num_frames: int) -> None:
        """Checks sizes and ranges against a problem.

        Raises:
            DatasetError: an array does not fit `num_queries` or `num_frames`.
        """
        if (self.frame is None) != (self.frame_offset is None) or (self.frame is None) == (self.excluded_frame is None):
            raise DatasetError(f"gallery {name!r}: give either frame and frame_offset, or excluded_frame")
        if self.frame is not None and self.other_cameras_only:
            raise DatasetError(f"gallery {name!r}: other_cameras_only does not go with listed frames")
        if self.target_box.shape != (len(self.target_frame), 4) or self.target_count.shape != (num_queries,):
            raise DatasetError(
                f"gallery {name!r}: target_box is {self.target_box.shape}, target_count "
                f"{self.target_count.shape}; expected ({len(self.target_frame)}, 4), ({num_queries},)"
            )
        _check_offsets(f"gallery {name!r}: target_offset", self.target_offset, num_queries, len(self.target_frame))
        _check_range(f"gallery {name!r}: target_frame", self.target_frame, num_frames)
        if self.frame is not None and self.frame_offset is not None:
            _check_offsets(f"gallery {name!r}: frame_offset", self.frame_offset, num_queries, len(self.frame))
            _check_range(f"gallery {name!r}: frame", self.frame, num_frames)
        elif self.excluded_frame is not None and self.excluded_frame.shape != (num_queries,):
            raise DatasetError(f"gallery {name!r}: excluded_frame is {self.excluded_frame.shape}, not ({num_queries},)")


def all_frames_but_own(
    query_frame: np.ndarray,
    query_person_id: np.ndarray,
    gt_frame: np.ndarray,
    gt_box: np.ndarray,
    gt_person_id: np.ndarray,
    frame_camera: np.ndarray | None = None,
) -> Galleries:
    """Galleries of PRW and custom datasets: all frames but the query's own, with the annotations as ground truth.

    Of two boxes of one person in a frame, the first counts (SeqNet's `eval_search_prw`).

    Args:
        query_frame: (Q,) integer.
        query_person_id: (Q,) integer, >= 0.
        gt_frame: (G,) integer; gt_box: (G, 4) xyxy pixels; gt_person_id: (G,) integer, < 0 if unlabelled.
        frame_camera: (F,) integer; if given, only frames of other cameras than the query's are searched.
    """
    by_person = np.argsort(gt_person_id, kind="stable")
    sorted_id = gt_person_id[by_person]
    first = np.searchsorted(sorted_id, query_person_id, "left")
    count = np.searchsorted(sorted_id, query_person_id, "right") - first
    query = np.repeat(np.arange(len(query_frame)), count)
    box = by_person[ranges(first, count)]
    searched = gt_frame[box] != query_frame[query]
    if frame_camera is not None:
        searched &= frame_camera[gt_frame[box]] != frame_camera[query_frame[query]]
    query, box = query[searched], box[searched]
    # A person's boxes are in stored order, so the first of each (query, frame) pair counts.
    pair = query.astype(np.int64) * (int(gt_frame.max(initial=0)) + 1) + gt_frame[box]
    _, kept = np.unique(pair, return_index=True)
    query, box = query[kept], box[kept]
    count = np.bincount(query, minlength=len(query_frame))
    return Galleries(
        target_offset=offsets_of(count),
        target_frame=gt_frame[box].astype(np.int64),
        target_box=gt_box[box].astype(np.float64),
        target_count=count,
        excluded_frame=np.asarray(query_frame, np.int64),
        other_cameras_only=frame_camera is not None,
    )


def full_set(query_frame: np.ndarray, listed: Galleries) -> Galleries:
    """Gallery "full" of CUHK-SYSU: all frames, with the targets of a listed gallery.

    The query's own frame is excluded unless that gallery lists it (SeqNet's `eval_search_cuhk`, gallery size -1).

    Args:
        query_frame: (Q,) integer.
        listed: galleries of listed frames for the same queries.
    """
    assert listed.frame_offset is not None
    query = np.repeat(np.arange(len(query_frame)), np.diff(listed.frame_offset))
    lists_own = np.zeros(len(query_frame), bool)
    lists_own[query[listed.frame == query_frame[query]]] = True
    return Galleries(
        target_offset=listed.target_offset,
        target_frame=listed.target_frame,
        target_box=listed.target_box,
        target_count=listed.target_count,
        excluded_frame=np.where(lists_own, -1, query_frame).astype(np.int64),
    )


def _check_offsets(what: str, offset: np.ndarray, num_queries: int, length: int) -> None:
    fits = offset.shape == (num_queries + 1,) and offset[0] == 0 and offset[-1] == length
    if not fits or (np.diff(offset) < 0).any():
        raise DatasetError(f"{what} must ascend from 0 to {length} in {num_queries + 1} entries")


def _check_range(what: str, index: np.ndarray, size: int) -> None:
    if len(index) and not 0 <= index.min() <= index.max() < size:
        raise DatasetError(f"{what} runs from {index.min()} to {index.max()}; expected 0 to {size - 1}")


UNLABELLED = -1
"""Person id of a person without identity. All negative ids count as unlabelled."""


@dataclass(frozen=True)
class SearchProblem:
    """D detections and G annotated boxes in F frames, Q queries and their galleries.

    Boxes are (x0, y0, x1, y1) in pixels of the original frame; `..._frame` are indices into the F frames.

    Attributes:
        det_frame: (D,) int64, in any order. The order within a frame is the stored order of its detections.
        det_box: (D, 4) float32 or float64.
        det_score: (D,) float32 or float64.
        det_feature: (D, d) float32 or float64, unit length.
        frame_name: F unique names.
        gt_frame: (G,) int64.
        gt_box: (G, 4) float64.
        gt_person_id: (G,) int64, < 0 if unlabelled.
        query_frame: (Q,) int64.
        query_box: (Q, 4) float64.
        query_person_id: (Q,) int64.
        query_feature: (Q, d), unit length; zeros for a query without a feature, which finds nothing.
        frame_camera: (F,) int64; None if unknown.
        galleries: galleries of these queries by name.
        main_gallery: name of the gallery whose metrics represent the problem; "" for the first.

    Raises:
        DatasetError: an array has a wrong shape or type, an index is out of range, a number is not finite, or two
            frames have the same name.
    """

    det_frame: np.ndarray
    det_box: np.ndarray
    det_score: np.ndarray
    det_feature: np.ndarray
    frame_name: tuple[str, ...]
    gt_frame: np.ndarray
    gt_box: np.ndarray
    gt_person_id: np.ndarray
    query_frame: np.ndarray
    query_box: np.ndarray
    query_person_id: np.ndarray
    query_feature: np.ndarray
    frame_camera: np.ndarray | None = None
    galleries: Mapping[str, Galleries] = field(default_factory=dict)
    main_gallery: str = ""

    def __post_init__(self) -> None:
        num_det, num_gt, num_query = len(self.det_frame), len(self.gt_frame), len(self.query_frame)
        dimension = self.det_feature.shape[1] if self.det_feature.ndim == 2 else 0
        shapes = {
            "det_frame": (num_det,), "det_box": (num_det, 4), "det_score": (num_det,),
            "det_feature": (num_det, dimension), "gt_frame": (num_gt,), "gt_box": (num_gt, 4),
            "gt_person_id": (num_gt,), "query_frame": (num_query,), "query_box": (num_query, 4),
            "query_person_id": (num_query,), "query_feature": (num_query, dimension),
        }  # fmt: skip
        if self.frame_camera is not None:
            shapes["frame_camera"] = (len(self.frame_name),)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise DatasetError(f"search problem: {name} has shape {array.shape}, expected {shape}")
            kinds = "iu" if name.endswith("_id") else "iuf"
            if array.dtype.kind not in kinds and not name.endswith("_frame"):
                what = "numbers" if "f" in kinds else "integers"
                raise DatasetError(f"search problem: {name} must have {what}, not {array.dtype}")
            if array.dtype.kind == "f" and not _is_finite(array):
                raise DatasetError(f"search problem: {name} has numbers that are not finite")
        if len(set(self.frame_name)) != len(self.frame_name):
            twice = next(name for name, count in Counter(self.frame_name).items() if count > 1)
            raise DatasetError(
                f"search problem: frame_name has {twice!r} more than once; names of frames must be unique"
            )
        for name in ("det_frame", "gt_frame", "query_frame"):
            _check_frames(name, getattr(self, name), len(self.frame_name))
        for name, galleries in self.galleries.items():
            galleries.check(name, num_query, len(self.frame_name))
            if galleries.other_cameras_only and self.frame_camera is None:
                raise DatasetError(f"search problem: gallery {name!r} needs frame_camera, which is not known")
        if self.main_gallery and self.main_gallery not in self.galleries:
            raise DatasetError(f"search problem: main gallery {self.main_gallery!r} is not in {list(self.galleries)}")

    def gallery_name(self, name: str | None = None) -> str:
        """`name`, or the name of the main gallery if it is None.

        Raises:
            DatasetError: there is no such gallery.
        """
        name = name or self.main_gallery or next(iter(self.galleries), "")
        if name not in self.galleries:
            raise DatasetError(f"search problem: no gallery {name!r}; there are {list(self.galleries) or 'none'}")
        return name


def own_frame_galleries(problem: SearchProblem, cross_camera: bool) -> Galleries:
    """Galleries of all frames but the query's own, from the annotations of a problem (PRW, custom datasets).

    Args:
        problem: search problem, whose own galleries are ignored.
        cross_camera: whether to search only frames of other cameras than the query's.

    Raises:
        DatasetError: cameras are needed and unknown.
    """
    if cross_camera and problem.frame_camera is None:
        raise DatasetError("cross-camera search: the cameras of the frames are not known (camera_id of the records)")
    return all_frames_but_own(
        problem.query_frame,
        problem.query_person_id,
        problem.gt_frame,
        problem.gt_box,
        problem.gt_person_id,
        problem.frame_camera if cross_camera else None,
    )


def frame_gap_galleries(problem: SearchProblem, frame_number: np.ndarray, least: int) -> Galleries:
    """Galleries without a query's neighbors in its video, which are near-copies of its frame.

    Args:
        problem: search problem, whose own galleries are ignored.
        frame_number: (F,) int64, number of each frame in the video of its camera.
        least: minimum difference from the number of the query's frame, for frames of the query's camera.
    """
    own = own_frame_galleries(problem, cross_camera=False)
    camera = np.zeros(len(frame_number), np.int64) if problem.frame_camera is None else problem.frame_camera
    frames, kept = [], []
    for query, frame in enumerate(problem.query_frame):
        near = (np.abs(frame_number - frame_number[frame]) < least) & (camera == camera[frame])
        near[frame] = True
        frames.append(np.flatnonzero(~near).astype(np.int32))
        kept.append(~near[own.target_frame[own.target_offset[query] : own.target_offset[query + 1]]])
    keep = np.concatenate([np.zeros(0, bool), *kept])
    count = np.array([int(part.sum()) for part in kept], np.int64)
    return Galleries(
        target_offset=offsets_of(count),
        target_frame=own.target_frame[keep],
        target_box=own.target_box[keep],
        target_count=count,
        frame_offset=offsets_of([len(part) for part in frames]),
        frame=np.concatenate([np.zeros(0, np.int32), *frames]),
    )


def with_galleries(problem: SearchProblem, galleries: Mapping[str, Galleries], main: str = "") -> SearchProblem:
    """Search problem with other galleries.

    Raises:
        DatasetError: they do not fit the problem, or `main` is not one of them.
    """
    return replace(problem, galleries=dict(galleries), main_gallery=main)


def _is_finite(array: np.ndarray, rows: int = 4096) -> bool:
    # In blocks: a mask over all features of a large dataset would take a quarter of their memory.
    return all(np.isfinite(array[i : i + rows]).all() for i in range(0, len(array), rows))


def _check_frames(name: str, index: np.ndarray, num_frames: int) -> None:
    if index.dtype.kind not in "iu":
        raise DatasetError(f"search problem: {name} must have integers, not {index.dtype}")
    if len(index) and not 0 <= index.min() <= index.max() < num_frames:
        raise DatasetError(
            f"search problem: {name} runs from {index.min()} to {index.max()}, expected 0 to {num_frames - 1}"
        )
