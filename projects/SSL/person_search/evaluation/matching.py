"""When a detection counts as the person of an annotated box."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .galleries import Galleries
from .index import DetectionIndex
from .ragged import offsets_of, pairs


@dataclass(frozen=True)
class Matches:
    """Detections that overlap the targets of Q queries well enough, sorted by query and target.

    Attributes:
        offset: (Q + 1,) int64; the matches of query q are the rows `offset[q]:offset[q + 1]`.
        detection: (M,) int64, positions in a `DetectionIndex`, in stored order within a target.
        target: (M,) int64, rows of the targets of the galleries.
    """

    offset: np.ndarray
    detection: np.ndarray
    target: np.ndarray


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes, pair by pair, in double precision.

    Args:
        a, b: (n, 4) xyxy.

    Returns:
        (n,) float64; 0 where both boxes have no area.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])
    intersection = np.maximum(size[:, 0], 0) * np.maximum(size[:, 1], 0)
    union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - intersection
    return np.divide(intersection, union, out=np.zeros(len(a)), where=union > 0)


def iou_threshold(box: np.ndarray) -> np.ndarray:
    """Least IoU with a ground-truth box: min(0.5, wh / ((w + 10)(h + 10))), lower for small persons (OIM's protocol).

    Args:
        box: (n, 4) xyxy pixels.

    Returns:
        (n,) float64; 0 for a box without area.
    """
    width, height = box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]
    return np.minimum(0.5, width * height / ((width + 10) * (height + 10)))


def match_targets(galleries: Galleries, index: DetectionIndex, searchable: np.ndarray) -> Matches:
    """All detections of a target's frame that reach its IoU threshold; those without overlap never do.

    Args:
        searchable: (Q,) bool; the other queries get no matches.
    """
    target, detection = pairs(index.start[galleries.target_frame], index.count[galleries.target_frame])
    iou = box_iou(index.box[detection], galleries.target_box[target])
    matched = (iou >= iou_threshold(galleries.target_box)[target]) & (iou > 0)
    query = np.repeat(np.arange(len(searchable)), np.diff(galleries.target_offset))[target]
    matched &= searchable[query]
    count = np.bincount(query[matched], minlength=len(searchable))
    return Matches(offsets_of(count), detection[matched], target[matched])
