"""Detection figures: how well the persons are found, whoever they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .index import DetectionIndex
from .matching import box_iou
from .problem import SearchProblem
from .ragged import pairs
from .ranking import count_at_least


@dataclass(frozen=True)
class DetectionResult:
    """Detection figures as fractions, NaN where there is no box to find, and the counts behind them.

    Attributes:
        recall: share of the annotated boxes that are found.
        AP: average precision times recall.
        recall_labelled: recall of the boxes with an identity alone.
        num_boxes: annotated boxes.
        num_labelled: those of them with an identity.
        num_detections: detections that reach the score threshold.
    """

    recall: float
    AP: float
    recall_labelled: float
    num_boxes: int
    num_labelled: int
    num_detections: int


def evaluate_detection(
    problem: SearchProblem, score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> DetectionResult:
    """Detection figures as SeqNet's `eval_detection` defines them.

    A box is found by a detection if their IoU reaches the threshold, no other box of the frame has a higher IoU with
    the detection and no other detection a higher one with the box (of equal ones the first stored counts). Equal
    scores are one threshold of the precision-recall curve. Detections in frames without boxes are false positives.

    Args:
        problem: its annotations and detections; queries and galleries play no part.
        score_threshold: detections below it are dropped.
        iou_threshold: least IoU.
    """
    index = DetectionIndex.build(problem, score_threshold)
    found = _found(problem, index, np.arange(len(problem.gt_frame)), iou_threshold)
    labelled = np.flatnonzero(problem.gt_person_id >= 0)
    found_labelled = _found(problem, index, labelled, iou_threshold)
    num_boxes = len(problem.gt_frame)
    return DetectionResult(
        recall=len(found) / num_boxes if num_boxes else float("nan"),
        AP=_average_precision(index.score, index.score[found], num_boxes),
        recall_labelled=len(found_labelled) / len(labelled) if len(labelled) else float("nan"),
        num_boxes=num_boxes,
        num_labelled=len(labelled),
        num_detections=len(index.detection),
    )


@dataclass(frozen=True)
class PrecisionRecall:
    """The precision-recall curve of detection, from the highest score down, as fractions.

    Attributes:
        score: (T,) float64, the distinct scores, falling; each is a threshold.
        recall: (T,) float64, share of the annotated boxes that are found by detections of that score or more.
        precision: (T,) float64, share of those detections that find a box.
    """

    score: np.ndarray
    recall: np.ndarray
    precision: np.ndarray

    @property
    def area(self) -> float:
        """Area below the curve, each precision reaching back to the point before: `DetectionResult.AP`."""
        return float((np.diff(self.recall, prepend=0.0) * self.precision).sum())


def precision_recall(
    problem: SearchProblem, score_threshold: float = 0.5, iou_threshold: float = 0.5
) -> PrecisionRecall:
    """The curve whose area is the AP of `evaluate_detection`, which has the definitions and the arguments.

    Returns:
        A point for each distinct score; none where there is no detection or no box to find.
    """
    index = DetectionIndex.build(problem, score_threshold)
    num_boxes = len(problem.gt_frame)
    if not num_boxes:
        return PrecisionRecall(np.zeros(0), np.zeros(0), np.zeros(0))
    hit = np.zeros(len(index.detection), bool)
    hit[_found(problem, index, np.arange(num_boxes), iou_threshold)] = True
    score, group = np.unique(index.score, return_inverse=True)
    found = np.bincount(group, hit, len(score))[::-1].cumsum()
    shown = np.bincount(group, minlength=len(score))[::-1].cumsum()
    return PrecisionRecall(score[::-1].astype(np.float64), found / num_boxes, found / shown)


def _found(problem: SearchProblem, index: DetectionIndex, boxes: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Positions (in `index`) of the true positives among the annotated `boxes` (n,)."""
    frame = problem.gt_frame[boxes]
    box, detection = pairs(index.start[frame], index.count[frame])
    # In single precision, as the reference stores them: an IoU within rounding of the threshold reaches it.
    iou = box_iou(problem.gt_box[boxes[box]], index.box[detection]).astype(np.float32)
    best = _first_best(box, iou, detection) & _first_best(detection, iou, box)
    return detection[best & (iou >= iou_threshold)]


def _first_best(group: np.ndarray, value: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Marks the element with the highest value of each group (all (n,)); of equal ones the one first in `order`."""
    ranked = np.lexsort((order, -value, group))
    best = np.zeros(len(group), bool)
    best[ranked[np.flatnonzero(np.diff(group[ranked], prepend=-1))]] = True
    return best


def _average_precision(score: np.ndarray, score_found: np.ndarray, num_boxes: int) -> float:
    if not num_boxes:
        return float("nan")
    # Precision at the threshold of each true positive; summing over all boxes scales the mean by recall.
    precision = count_at_least(score_found, score_found) / count_at_least(score, score_found)
    return float(precision.sum() / num_boxes)
