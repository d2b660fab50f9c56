"""Galleries: the frames in which each query is searched, and where its person is to be found in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..errors import DatasetError
from .ragged import offsets_of, ranges


@dataclass(frozen=True)
class Galleries:
    """The gallery of each of Q queries. Frames are indices into the frames of a `SearchProblem`.

    Attributes:
        target_offset: (Q + 1,) int64; the targets of query q are the rows `target_offset[q]:target_offset[q + 1]`.
        target_frame: (T,) int64, the frames of the gallery that show the person, each once for a query.
        target_box: (T, 4) float64 (x0, y0, x1, y1) in pixels, the person's box there.
        target_count: (Q,) int64, how many matches there are to find: the denominator of recall. It exceeds the
            number of targets where a protocol file lists a frame of the person twice.
        frame_offset: (Q + 1,) int64 and
        frame: (M,) integer: the listed frames of query q, each once, are `frame[frame_offset[q]:frame_offset[q + 1]]`.
            Both None: every frame is searched but `excluded_frame`.
        excluded_frame: (Q,) int64, the one frame that is not searched where no frames are listed; -1: none.
        other_cameras_only: leave out the frames of the query's own camera as well. Not for listed frames.
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
        if self.frame is not None:
            _check_offsets(f"gallery {name!r}: frame_offset", self.frame_offset, num_queries, len(self.frame))
            _check_range(f"gallery {name!r}: frame", self.frame, num_frames)
        elif self.excluded_frame.shape != (num_queries,):
            raise DatasetError(f"gallery {name!r}: excluded_frame is {self.excluded_frame.shape}, not ({num_queries},)")


def all_frames_but_own(
    query_frame: np.ndarray,
    query_person_id: np.ndarray,
    gt_frame: np.ndarray,
    gt_box: np.ndarray,
    gt_person_id: np.ndarray,
    frame_camera: np.ndarray | None = None,
) -> Galleries:
    """Galleries of PRW and of custom sets: every frame but the query's own; the annotations are the ground truth.

    Of two boxes of one person in a frame the first counts (SeqNet's `eval_search_prw`).

    Args:
        query_frame: (Q,) integer.
        query_person_id: (Q,) integer, >= 0.
        gt_frame: (G,) integer; gt_box: (G, 4) xyxy pixels; gt_person_id: (G,) integer, < 0 where unlabelled.
        frame_camera: (F,) integer; given, only frames of other cameras than the query's are searched.
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
    # Boxes of a person stand in stored order, so the first of each (query, frame) pair is the one that counts.
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
    """The gallery "full" of CUHK-SYSU: every frame, with the targets of a listed gallery.

    The query's own frame is left out unless that gallery lists it (SeqNet's `eval_search_cuhk`, gallery size -1).

    Args:
        query_frame: (Q,) integer.
        listed: galleries of listed frames for the same queries.
    """
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
        raise DatasetError(f"{what} has to rise from 0 to {length} in {num_queries + 1} entries")


def _check_range(what: str, index: np.ndarray, size: int) -> None:
    if len(index) and not 0 <= index.min() <= index.max() < size:
        raise DatasetError(f"{what} runs from {index.min()} to {index.max()}; expected 0 to {size - 1}")
