"""Cluster labels of one epoch, and the reliability threshold that is kept from the first epoch on."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from torch import Tensor

from .camera import centre_cameras
from .clustering import dbscan
from .hdbscan import hdbscan
from .jaccard import as_features, distance_from_ranks
from .neighbors import SEARCHES, nearest_neighbors
from .reliability import Labels, keep_nearest_per_image, keep_reliable, number_labels, outliers_to_singletons

logger = logging.getLogger(__name__)

CLUSTERERS = {"dbscan": dbscan, "hdbscan": hdbscan}
# Up to this deviation of a norm from 1 rows are taken as they are, so that no rounding is added.
_UNIT_TOLERANCE = 1e-5


def invalid_rows(features: Tensor | NDArray) -> NDArray[np.int64]:
    """Lists the rows of features (N, d) that cannot be clustered: those with NaN or infinite values, and zero rows."""
    features = torch.as_tensor(features).detach()
    valid = features.isfinite().all(1) & (features != 0).any(1)
    return (~valid).nonzero()[:, 0].cpu().numpy()


class SelfPacedDBSCAN:
    """Cluster labels with the self-paced reliability criterion (SpCL, CGPS).

    Each fit computes the k-reciprocal Jaccard distance once, clusters it at every eps, applies the same-image rule
    after each, and lets rows keep their cluster of the middle eps only where the tighter and the looser one confirm it.

    Attributes:
        threshold: largest R_indep of a cluster that is believed. None before the first fit that finds a cluster, then
            frozen. It is all the state there is (`state_dict`).
        timings: seconds of the last fit by stage: search, distance, clustering, criterion (with the same-image rule).
    """

    def __init__(
        self,
        eps: Sequence[float] = (0.68, 0.70, 0.72),
        min_samples: int = 4,
        *,
        k1: int = 30,
        k2: int = 6,
        quantile: float = 0.9,
        same_image_rule: bool = True,
        clusterer: str = "dbscan",
        search: str = "exact",
        progress: bool = False,
    ) -> None:
        """
        Args:
            eps: rising distances in (0, 1): tight, normal and loose. A single one switches the criterion off.
            min_samples: neighbours, the row itself counted, that make a core row.
            k1, k2: see `jaccard_distance`.
            quantile: where in the sorted R_indep of the first clusters the threshold is read, in [0, 1].
            same_image_rule: whether a cluster keeps one member of each image only.
            clusterer: "dbscan", or "hdbscan", which may also split what eps joins.
            search: "exact", or "faiss" for an approximate search where N is in the hundred thousands.
            progress: show progress bars on stderr.

        Raises:
            ValueError: an argument out of its range; the message names it.
        """
        self.eps = tuple(float(value) for value in eps)
        self.min_samples, self.k1, self.k2, self.quantile = min_samples, k1, k2, quantile
        self.same_image_rule, self.clusterer, self.search, self.progress = same_image_rule, clusterer, search, progress
        self._check_arguments()
        self.threshold: float | None = None
        self.timings: dict[str, float] = {}

    def _check_arguments(self) -> None:
        eps = self.eps
        if len(eps) not in (1, 3) or list(eps) != sorted(set(eps)) or not 0 < eps[0] <= eps[-1] < 1:
            raise ValueError(f"eps is {eps}: expected one value, or three rising values, in (0, 1)")
        for name in ("min_samples", "k1", "k2"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it counts the row itself, give {name} >= 1")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile is {self.quantile}: expected a fraction in [0, 1]")
        if self.clusterer not in CLUSTERERS:
            raise ValueError(f"clusterer is {self.clusterer!r}: expected one of {', '.join(CLUSTERERS)}")
        if self.search not in SEARCHES:
            raise ValueError(f"search is {self.search!r}: expected one of {', '.join(SEARCHES)}")

    @torch.no_grad()
    def fit(
        self, features: Tensor | NDArray, image_ids: ArrayLike | Tensor, camera_ids: ArrayLike | Tensor | None = None
    ) -> Labels:
        """Clusters the rows of a memory bank.

        Args:
            features: (N, d) float, tensor on any device or array. Rows are scaled to unit length. All-zero rows (bank
                rows never seen) become singletons; `invalid_rows` lists them.
            image_ids: (N,) integers or strings, the image of each row.
            camera_ids: (N,) integers, the camera of each row, negative where unknown. If given, distances are taken
                between features whose cameras' means are aligned (see `centre_cameras`).

        Returns:
            (N,) int64 labels 0..C-1 without gaps: clusters of two and more rows first, in the order of their first
            rows, then one label for each remaining row.

        Raises:
            ValueError: NaN or infinite features, or arrays that do not fit each other.
        """
        features = as_features(features)
        images = _numbered(image_ids, len(features), "image_ids")
        self.timings = {}
        labels = np.full(len(features), -1, dtype=np.int64)
        zero = invalid_rows(features)
        valid = np.setdiff1d(np.arange(len(features)), zero)
        if len(valid):
            cameras = None if camera_ids is None else _as_array(camera_ids, len(features), "camera_ids")[valid]
            labels[valid] = self._fit_valid(
                features[torch.from_numpy(valid).to(features.device)], images[valid], cameras
            )
        return number_labels(outliers_to_singletons(labels))

    def _fit_valid(self, features: Tensor, images: NDArray[np.int64], cameras: NDArray | None) -> Labels:
        """Labels of rows that are finite and not zero."""
        features = _unit_rows(features)
        if cameras is not None:
            features = centre_cameras(features, cameras)
        distance = self._distance(features)
        with self._stage("clustering"):
            cluster = CLUSTERERS[self.clusterer]
            levels = [outliers_to_singletons(cluster(distance, eps, self.min_samples)) for eps in self.eps]
        with self._stage("criterion"):
            if self.same_image_rule:
                levels = [keep_nearest_per_image(labels, features, images) for labels in levels]
            if len(levels) == 1:
                return levels[0]
            tight, labels, loose = levels
            labels, self.threshold = keep_reliable(labels, tight, loose, self.threshold, self.quantile)
        return labels

    def _distance(self, features: Tensor) -> sparse.csr_matrix:
        with self._stage("search"):
            ranks = nearest_neighbors(features, self.k1, self.search, self.progress)
        with self._stage("distance"):
            return distance_from_ranks(features, ranks, self.k1, self.k2, self.eps[-1], self.progress)

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start
        logger.info("Pseudo labels, %s: %.1f s", name, self.timings[name])

    def state_dict(self) -> dict[str, float | None]:
        """The learnt state: {"threshold": float, or None where nothing was learnt yet}."""
        return {"threshold": self.threshold}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over the state of `state_dict`.

        Raises:
            ValueError: a state without a usable "threshold".
        """
        threshold = state.get("threshold", "missing")
        if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
            raise ValueError(
                f"threshold is {threshold!r} in the clusterer's state, expected a number in [0, 1] or None"
            )
        self.threshold = None if threshold is None else float(threshold)


def _unit_rows(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features if bool(((norm - 1).abs() <= _UNIT_TOLERANCE).all()) else features / norm


def _as_array(values: ArrayLike | Tensor, count: int, name: str) -> NDArray:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({count},): one for each feature row")
    return array


def _numbered(values: ArrayLike | Tensor, count: int, name: str) -> NDArray[np.int64]:
    """Numbers equal values alike, (N,) int64."""
    return np.unique(_as_array(values, count, name), return_inverse=True)[1].astype(np.int64).reshape(-1)
