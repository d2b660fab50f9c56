"""Agreement of pseudo labels with known identities, for diagnostics only: nothing here may reach training."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics.cluster import pair_confusion_matrix


class PrecisionRecall(NamedTuple):
    """Precision and recall, in [0, 1]."""

    precision: float
    recall: float


def pair_precision_recall(labels: ArrayLike, person_ids: ArrayLike) -> PrecisionRecall:
    """Precision and recall of cluster labels over pairs of rows whose identity is known.

    A pair is predicted if both rows have the same label, and true if both have the same identity.

    Args:
        labels: (N,) int, cluster label of each row.
        person_ids: (N,) int, identity of each row, negative if unknown. Rows of unknown identity are ignored.

    Returns:
        Precision and recall. Precision is 1 without predicted pairs, recall is 1 without true pairs.

    Raises:
        ValueError: the arrays differ in shape.
    """
    labels, person_ids = _as_numpy(labels), _as_numpy(person_ids)
    if labels.shape != person_ids.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and person_ids {person_ids.shape} must have the same shape (N,)")
    known = person_ids >= 0
    labels, person_ids = labels[known], person_ids[known]
    if not len(labels):
        return PrecisionRecall(1.0, 1.0)
    (_, claimed_only), (true_only, correct) = pair_confusion_matrix(person_ids, labels).tolist()
    return PrecisionRecall(_ratio(correct, correct + claimed_only), _ratio(correct, correct + true_only))


def multi_label_precision_recall(multi_labels: ArrayLike, rows: ArrayLike, person_ids: ArrayLike) -> PrecisionRecall:
    """Precision and recall of multi-labels over pairs of a row and another bank row with known identities.

    Args:
        multi_labels: (q, N) bool, see `predict_multi_labels`. A row's label for itself is ignored.
        rows: (q,) int, labelled bank rows.
        person_ids: (N,) int, identity of each bank row, negative if unknown.

    Returns:
        Precision and recall. Precision is 1 without predicted pairs, recall is 1 without true pairs.

    Raises:
        ValueError: shapes do not match.
    """
    multi_labels, rows, person_ids = _as_numpy(multi_labels), _as_numpy(rows), _as_numpy(person_ids)
    if multi_labels.shape != (len(rows), len(person_ids)):
        raise ValueError(
            f"multi_labels has shape {multi_labels.shape}, expected ({len(rows)}, {len(person_ids)}) for "
            f"{len(rows)} rows and {len(person_ids)} person_ids"
        )
    query, column = np.nonzero(multi_labels)
    own = person_ids[rows]
    counted = (column != rows[query]) & (own[query] >= 0) & (person_ids[column] >= 0)
    query, column = query[counted], column[counted]
    correct = int((own[query] == person_ids[column]).sum())
    persons, sizes = np.unique(person_ids[person_ids >= 0], return_counts=True)
    true = int((sizes[np.searchsorted(persons, own[own >= 0])] - 1).sum())
    return PrecisionRecall(_ratio(correct, len(query)), _ratio(correct, true))


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0


def _as_numpy(values: ArrayLike) -> NDArray[Any]:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
