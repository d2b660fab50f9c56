"""Cluster labels of an epoch: same-image rule and self-paced reliability criterion (SpCL, CGPS)."""

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

from .clustering import centre_cameras, dbscan, hdbscan, keep_one_to_one, number_by_first_row
from .jaccard import as_features, codes_of_ranks, distance_of_codes, distances_of_pairs
from .k_reciprocal import SparseRows
from .multi_label import same_image_pairs
from .neighbors import nearest_neighbors
from .tracklets import keep_tracklets_whole

Labels = NDArray[np.int64]


def outliers_to_singletons(labels: Labels) -> Labels:
    """Labels (N,) int64 with a new label, above all others, for each row labelled -1."""
    return _to_singletons(labels, labels < 0)


def keep_nearest_per_image(labels: Labels, features: Tensor, images: NDArray[np.int64]) -> Labels:
    """Labels after the same-image rule: persons of one image differ, so a cluster keeps one member of each image.

    The member with the largest inner product with the cluster's centre, the plain mean of its members' features, stays;
    for unit rows it is the nearest. Among equals, the lowest row stays. The others become singletons. Centres are
    computed before the rule is applied.

    Args:
        labels: (N,) int64, all >= 0.
        features: (N, d) float32.
        images: (N,) int64, image of each row, from 0.

    Returns:
        (N,) int64 labels.
    """
    if len(labels) == 0:
        return labels
    group = np.unique(_both(labels, images), return_inverse=True)[1]
    rival = np.flatnonzero(np.bincount(group)[group] > 1)
    if len(rival) == 0:
        return labels
    similarity = _similarity_to_centre(labels, features, rival)
    order = np.lexsort((rival, -similarity, group[rival]))
    rival = rival[order]
    demoted = np.zeros(len(labels), dtype=bool)
    # The first of each group is kept.
    demoted[rival[1:]] = group[rival[1:]] == group[rival[:-1]]
    return _to_singletons(labels, demoted)


def _similarity_to_centre(labels: Labels, features: Tensor, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Inner product of some rows (r,) with the mean feature of their clusters, (r,)."""
    clusters, own = np.unique(labels[rows], return_inverse=True)
    members = np.flatnonzero(np.isin(labels, clusters))
    place = torch.from_numpy(np.searchsorted(clusters, labels[members])).to(features.device)
    total = features.new_zeros((len(clusters), features.shape[1]))
    total.index_add_(0, place, features[torch.from_numpy(members).to(features.device)])
    centre = total / torch.bincount(place, minlength=len(clusters))[:, None]
    picked = features[torch.from_numpy(rows).to(features.device)]
    return torch.linalg.vecdot(picked, centre[torch.from_numpy(own).to(features.device)]).cpu().numpy()


def disagreement(labels: Labels, others: Labels) -> NDArray[np.float32]:
    """Disagreement of two labellings (N,), all labels >= 0: 1 - IoU of each row's clusters, (N,) float32.

    Single precision as in the reference, so that its learnt threshold is met exactly.
    """
    together, size, other_size = (_group_size(x) for x in (_both(labels, others), labels, others))
    union = (size + other_size - together).astype(np.float32)
    return np.subtract(1, together.astype(np.float32) / union, dtype=np.float32)


def keep_reliable(
    labels: Labels, tight: Labels, loose: Labels, threshold: float | None, quantile: float
) -> tuple[Labels, float | None]:
    """Labels after the self-paced reliability criterion (Ge et al., SpCL, 2020, section 3.3).

    R_comp and R_indep of a row are the disagreements of its cluster with the tighter and the looser clustering. A row
    keeps its cluster if the cluster's smallest R_indep is at most the threshold and the row's R_comp is the cluster's
    smallest; otherwise it becomes a singleton.

    Args:
        labels, tight, loose: (N,) int64, all >= 0: clusterings at the middle, smallest and largest eps.
        threshold: maximum R_indep of a reliable cluster; None to learn it as the value at `quantile` of the sorted
            R_indep of all clusters of two or more rows.
        quantile: see `threshold`, in [0, 1].

    Returns:
        The labels, and the threshold, which remains None while there is no cluster to learn it from.
    """
    labels = number_by_first_row(labels)
    compactness, independence = disagreement(labels, tight), disagreement(labels, loose)
    sizes = np.bincount(labels)
    cluster_compactness = np.full(len(sizes), np.inf, dtype=np.float32)
    np.minimum.at(cluster_compactness, labels, compactness)
    cluster_independence = np.full(len(sizes), np.inf, dtype=np.float32)
    np.minimum.at(cluster_independence, labels, independence)
    if threshold is None:
        threshold = _value_at(cluster_independence[sizes > 1], quantile)
    if threshold is None:
        return labels, None
    kept = (cluster_independence[labels] <= np.float32(threshold)) & (compactness <= cluster_compactness[labels])
    return _to_singletons(labels, ~kept), threshold


def keep_confirmed(labels: Labels, previous: Labels, least: float = 0.5) -> Labels:
    """Labels after temporal consensus: rows keep their cluster if the last clustering confirms it. Not in the paper.

    A row is kept if the IoU of its cluster with its previous cluster is the largest among the members of its cluster,
    and at least `least`; otherwise it becomes a singleton.

    Args:
        labels, previous: (N,) int64, all >= 0: current and previous clustering.
        least: minimum IoU.

    Returns:
        (N,) int64 labels.
    """
    labels = number_by_first_row(labels)
    change = disagreement(labels, previous)
    smallest = np.full(int(labels.max(initial=-1)) + 1, np.inf, dtype=np.float32)
    np.minimum.at(smallest, labels, change)
    return _to_singletons(labels, (change > smallest[labels]) | (change > np.float32(1 - least)))


def _value_at(values: NDArray[np.float32], quantile: float) -> float | None:
    """Value at a quantile of the sorted values; the position is rounded half to even, as in the reference."""
    if len(values) == 0:
        return None
    return float(np.sort(values)[min(len(values) - 1, round(len(values) * quantile))])


def number_labels(labels: Labels) -> Labels:
    """Labels (N,) without gaps: clusters of two or more rows first, then singletons, each in order of first rows."""
    labels = number_by_first_row(labels)
    sizes = np.bincount(labels)
    number = np.empty(len(sizes), dtype=np.int64)
    number[np.argsort(sizes == 1, kind="stable")] = np.arange(len(sizes))
    return number[labels]


def _group_size(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Size of the group of each element, (N,)."""
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return counts[inverse]


def _both(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Unique key of each pair of numbers >= 0."""
    return first * (second.max(initial=0) + 1) + second


def _to_singletons(labels: Labels, chosen: NDArray[np.bool_]) -> Labels:
    result = labels.copy()
    result[chosen] = labels.max(initial=-1) + 1 + np.arange(int(chosen.sum()))
    return result


logger = logging.getLogger(__name__)

CLUSTERERS = {"dbscan": dbscan, "hdbscan": hdbscan}
# Lower bound of calibrated radii, since clusterings do not accept 0.
_LEAST_RADIUS = 1e-6
# Deviation of a norm from 1 up to which rows are not rescaled, to avoid rounding.
_UNIT_TOLERANCE = 1e-5


def invalid_rows(features: Tensor | NDArray[np.floating]) -> NDArray[np.int64]:
    """Rows of features (N, d) that cannot be clustered: those with NaN or infinite values, and zero rows."""
    features = torch.as_tensor(features).detach()
    valid = features.isfinite().all(1) & (features != 0).any(1)
    return (~valid).nonzero()[:, 0].cpu().numpy()


class SelfPacedDBSCAN:
    """Cluster labels with the self-paced reliability criterion (SpCL, CGPS).

    Each fit computes the k-reciprocal Jaccard distance once, clusters it at every eps with the same-image rule, and
    lets rows keep their cluster at the middle eps only if the tighter and the looser clustering confirm it.

    Attributes:
        threshold: maximum R_indep of a reliable cluster. None until a fit finds a cluster, then frozen.
        previous: (N,) int64 labels of the last fit, before temporal consensus; None before the first fit, or without
            consensus. Together with `threshold`, this is the whole state (`state_dict`).
        timings: seconds of the last fit by stage: search, distance, matching (one to one), clustering, criterion (with
            the same-image rule).
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
        eps_quantile: float | None = None,
        one_to_one: bool = False,
        consensus: bool = False,
        progress: bool = False,
    ) -> None:
        """
        Args:
            eps: ascending distances in (0, 1): tight, normal and loose. A single one disables the criterion.
            min_samples: minimum number of neighbors, including the row itself, of a core row.
            k1, k2: see `jaccard_distance`.
            quantile: quantile of the sorted R_indep of the first clusters that becomes the threshold, in [0, 1].
            same_image_rule: whether a cluster keeps only one member of each image.
            clusterer: "dbscan", or "hdbscan", which may also split clusters within eps.
            eps_quantile: quantile, in [0, 1], of the distances between persons of one image, who are certainly
                different. It becomes the normal radius if it is smaller than that of `eps`; tight and loose radius keep
                their differences from it. None for the radii of `eps`.
            one_to_one: whether to drop the distances of pairs that do not match one to one across images before
                clustering, see `keep_one_to_one`.
            consensus: whether a row keeps its cluster only if the last fit confirms it, see `keep_confirmed`.
            progress: whether to show progress bars on stderr.

        Raises:
            ValueError: an argument is out of range; the message names it.
        """
        self.eps = tuple(float(value) for value in eps)
        self.min_samples, self.k1, self.k2, self.quantile = min_samples, k1, k2, quantile
        self.same_image_rule, self.clusterer, self.progress = same_image_rule, clusterer, progress
        self.eps_quantile = eps_quantile
        self.one_to_one, self.consensus = one_to_one, consensus
        self._check_arguments()
        self.threshold: float | None = None
        self.previous: Labels | None = None
        self.timings: dict[str, float] = {}

    def _check_arguments(self) -> None:
        eps = self.eps
        if len(eps) not in (1, 3) or list(eps) != sorted(set(eps)) or not 0 < eps[0] <= eps[-1] < 1:
            raise ValueError(f"eps is {eps}, expected one value, or three ascending values, in (0, 1)")
        if self.eps_quantile is not None and not 0 <= self.eps_quantile <= 1:
            raise ValueError(f"eps_quantile is {self.eps_quantile}, expected a number in [0, 1]")
        for name in ("min_samples", "k1", "k2"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 or more: it includes the row itself")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"quantile is {self.quantile}, expected a number in [0, 1]")
        if self.clusterer not in CLUSTERERS:
            raise ValueError(f"clusterer is {self.clusterer!r}, expected one of {', '.join(CLUSTERERS)}")

    @torch.no_grad()
    def fit(
        self,
        features: Tensor | NDArray[np.floating],
        image_ids: ArrayLike | Tensor,
        camera_ids: ArrayLike | Tensor | None = None,
        tracklet_ids: ArrayLike | Tensor | None = None,
    ) -> Labels:
        """Cluster labels of bank rows.

        Args:
            features: (N, d) float, tensor on any device or array. Rows are scaled to unit length. Zero rows (never
                seen) become singletons; `invalid_rows` lists them.
            image_ids: (N,) integers or strings, image of each row.
            camera_ids: (N,) integers, camera of each row, negative if unknown. If given, distances are computed after
                `centre_cameras`.
            tracklet_ids: (N,) integers, tracklet of each row, negative if none. If given, rows of a tracklet share a
                label (see `keep_tracklets_whole`), zero rows included.

        Returns:
            (N,) int64 labels 0..C-1 without gaps: clusters of two or more rows in order of their first rows, then a
            label for each remaining row.

        Raises:
            ValueError: features are NaN or infinite, or shapes do not match.
        """
        features = as_features(features)
        images = _numbered(image_ids, len(features), "image_ids")
        self.timings = {}
        labels = np.full(len(features), -1, dtype=np.int64)
        zero = invalid_rows(features)
        valid = np.setdiff1d(np.arange(len(features)), zero)
        if len(valid):
            cameras = None
            if camera_ids is not None:
                cameras = _as_array(camera_ids, len(features), "camera_ids")[valid].astype(np.int64)
            labels[valid] = self._fit_valid(
                features[torch.from_numpy(valid).to(features.device)], images[valid], cameras
            )
        labels = self._confirmed(outliers_to_singletons(labels))
        if tracklet_ids is not None:
            tracklets = _as_array(tracklet_ids, len(features), "tracklet_ids").astype(np.int64)
            labels = keep_tracklets_whole(labels, tracklets, images)
        return number_labels(labels)

    def _confirmed(self, labels: Labels) -> Labels:
        if not self.consensus:
            return labels
        previous, self.previous = self.previous, labels
        if previous is None:
            return labels
        if len(previous) != len(labels):
            raise ValueError(f"{len(labels)} features, but the last fit had {len(previous)}: use a new clusterer")
        return keep_confirmed(labels, previous)

    def _fit_valid(self, features: Tensor, images: NDArray[np.int64], cameras: NDArray[np.int64] | None) -> Labels:
        """Labels of rows that are finite and nonzero."""
        features = _unit_rows(features)
        if cameras is not None:
            features = centre_cameras(features, cameras)
        distance, radii = self._distance(features, images)
        if self.one_to_one:
            with self._stage("matching"):
                distance = keep_one_to_one(distance, images)
        with self._stage("clustering"):
            cluster = CLUSTERERS[self.clusterer]
            levels = [outliers_to_singletons(cluster(distance, eps, self.min_samples)) for eps in radii]
        with self._stage("criterion"):
            if self.same_image_rule:
                levels = [keep_nearest_per_image(labels, features, images) for labels in levels]
            if len(levels) == 1:
                return levels[0]
            tight, labels, loose = levels
            labels, self.threshold = keep_reliable(labels, tight, loose, self.threshold, self.quantile)
        return labels

    def _distance(self, features: Tensor, images: NDArray[np.int64]) -> tuple[sparse.csr_matrix, tuple[float, ...]]:
        """Distances up to the largest radius, and the radii."""
        with self._stage("search"):
            ranks = nearest_neighbors(features, self.k1, self.progress)
        with self._stage("distance"):
            codes = codes_of_ranks(features, ranks, self.k1, self.k2)
            radii = self._radii(codes, torch.from_numpy(images).to(features.device))
            return distance_of_codes(codes, radii[-1], self.progress), radii

    def _radii(self, codes: SparseRows, images: Tensor) -> tuple[float, ...]:
        """Radii of this fit: those given, or smaller ones if persons of one image are closer."""
        if self.eps_quantile is None:
            return self.eps
        distances = distances_of_pairs(codes, *same_image_pairs(images)).sort().values
        if not len(distances):
            raise ValueError("eps_quantile needs images with two persons or more, and there are none: set eps alone")
        normal = self.eps[len(self.eps) // 2]
        shift = min(float(distances[min(int(self.eps_quantile * len(distances)), len(distances) - 1)]) - normal, 0.0)
        radii = tuple(max(eps + shift, _LEAST_RADIUS) for eps in self.eps)
        logger.info("Radii of the clustering: %s", ", ".join(f"{radius:.3f}" for radius in radii))
        return radii

    @contextlib.contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.timings[name] = time.perf_counter() - start
        if self.timings[name] >= 1:
            logger.info("Pseudo labels, %s: %.1f s", name, self.timings[name])

    def state_dict(self) -> dict[str, Any]:
        """Learnt state: {"threshold": float or None} and, with temporal consensus, the labels "previous" (N,) int64."""
        state: dict[str, Any] = {"threshold": self.threshold}
        if self.previous is not None:
            state["previous"] = torch.from_numpy(self.previous)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores `state_dict`.

        Raises:
            ValueError: the state has no valid "threshold".
        """
        threshold = state.get("threshold", "missing")
        if threshold is not None and not (isinstance(threshold, (int, float)) and 0 <= threshold <= 1):
            raise ValueError(
                f"threshold is {threshold!r} in the clusterer's state, expected a number in [0, 1] or None"
            )
        self.threshold = None if threshold is None else float(threshold)
        previous = state.get("previous")  # missing in earlier versions
        self.previous = None if previous is None else previous.cpu().numpy()


def _unit_rows(features: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(features, dim=1, keepdim=True)
    return features if bool(((norm - 1).abs() <= _UNIT_TOLERANCE).all()) else features / norm


def _as_array(values: ArrayLike | Tensor, count: int, name: str) -> NDArray[np.generic]:
    array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
    if array.shape != (count,):
        raise ValueError(f"{name} has shape {array.shape}, expected ({count},): one for each feature row")
    return array


def _numbered(values: ArrayLike | Tensor, count: int, name: str) -> NDArray[np.int64]:
    """Equal numbers for equal values, (N,) int64."""
    return np.unique(_as_array(values, count, name), return_inverse=True)[1].astype(np.int64).reshape(-1)
