"""Pseudo labels: clustering and multi-labels, as pure functions of arrays.

May import the top-level modules only. Imported by `modeling`, `engine` and `reproduction`.
"""

from .diagnostics import multi_label_precision_recall, pair_precision_recall
from .jaccard import jaccard_distance
from .multi_label import (
    DynamicThreshold,
    calibrated_threshold,
    predict_multi_labels,
    same_image_similarities,
)
from .self_paced import SelfPacedDBSCAN, invalid_rows

__all__ = [
    "DynamicThreshold",
    "SelfPacedDBSCAN",
    "calibrated_threshold",
    "invalid_rows",
    "jaccard_distance",
    "multi_label_precision_recall",
    "pair_precision_recall",
    "predict_multi_labels",
    "same_image_similarities",
]
