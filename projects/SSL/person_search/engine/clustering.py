"""The clusterer that SSL.CLUSTERING describes, and the refusal of settings that would not do what they say."""

from __future__ import annotations

import importlib.util

import numpy as np
from detectron2.config import CfgNode

from ..data.training_set import TrainingSet
from ..errors import ConfigError
from ..labels import SelfPacedDBSCAN

# Argument of the clusterer -> its key.
_KEYS = {
    "eps": "EPS",
    "min_samples": "MIN_SAMPLES",
    "k1": "K1",
    "k2": "K2",
    "quantile": "INDEPENDENCE_QUANTILE",
    "same_image_rule": "SAME_IMAGE_RULE",
    "clusterer": "ALGORITHM",
    "search": "SEARCH",
}


def build_clusterer(cfg: CfgNode) -> SelfPacedDBSCAN:
    """The clusterer that SSL.CLUSTERING describes.

    Raises:
        ConfigError: a key of SSL.CLUSTERING holds a value that cannot work.
    """
    clustering = cfg.SSL.CLUSTERING
    if clustering.SEARCH == "faiss" and importlib.util.find_spec("faiss") is None:
        raise ConfigError("SSL.CLUSTERING.SEARCH 'faiss' needs the package faiss-cpu: install it, or search 'exact'")
    try:
        return SelfPacedDBSCAN(**{argument: clustering[key] for argument, key in _KEYS.items()})
    except ValueError as error:
        raise ConfigError(f"SSL.CLUSTERING.{_KEYS[str(error).split()[0]]}: {error}") from error


def check_clustering(cfg: CfgNode) -> None:
    """Refuses a pseudo-label schedule that cannot be kept.

    Raises:
        ConfigError: naming the key and what to do.
    """
    clustering = cfg.SSL.CLUSTERING
    build_clusterer(cfg)
    if clustering.PERIOD < 1:
        raise ConfigError(f"SSL.CLUSTERING.PERIOD is {clustering.PERIOD}: clusterings are 1 or more epochs apart")
    if clustering.FEATURES not in ("bank", "extract"):
        raise ConfigError(f"SSL.CLUSTERING.FEATURES is {clustering.FEATURES!r}, expected 'bank' or 'extract'")
    if clustering.FEATURES == "extract" and not cfg.SSL.CLUSTER_LOSS.WEIGHT:
        raise ConfigError(
            "SSL.CLUSTERING.FEATURES 'extract' passes the training set through the network before each clustering, and "
            "with SSL.CLUSTER_LOSS.WEIGHT 0 no loss reads the cluster labels: set it to 'bank'"
        )


def cluster_cameras(cfg: CfgNode, training_set: TrainingSet) -> np.ndarray | None:
    """Cameras (N,) int64 of the bank rows, -1 where unknown; None where SSL.CLUSTERING.CAMERA_AWARE is off.

    Raises:
        ConfigError: camera-aware clustering of frames whose cameras nobody knows.
    """
    if not cfg.SSL.CLUSTERING.CAMERA_AWARE:
        return None
    cameras = training_set.row_camera
    if not (cameras >= 0).any():
        raise ConfigError(
            f"SSL.CLUSTERING.CAMERA_AWARE needs to know cameras, and no frame of {', '.join(cfg.DATASETS.TRAIN)} has a "
            "camera_id: set it to False"
        )
    return cameras
