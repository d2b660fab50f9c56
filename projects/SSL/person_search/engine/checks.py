"""Refusal of config values that cannot work, before anything is built from them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.utils import comm
from torch import Tensor

from ..data.training_set import TrainingSet
from ..data.workers import check_shared_memory
from ..errors import ConfigError, DatasetError
from ..labels import SelfPacedDBSCAN
from ..modeling.objectives.base import BankObjective, objective_class
from .detectron2_keys import check_image_keys, check_schedule_keys, check_unread_keys


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low, high: its bounds, which belong to it.
        above: where given, the numbers have to be larger than this.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"a number from {self.low:g} to {self.high:g}"
        if math.isfinite(self.above):
            return f"a number above {self.above:g}" + (f" and up to {self.high:g}" if math.isfinite(self.high) else "")
        return f"{self.low:g} or more" if math.isfinite(self.low) else "a finite number"


_NOT_NEGATIVE, _POSITIVE, _FINITE = Range(low=0), Range(above=0), Range()
_SHARE, _SOME_SHARE = Range(0, 1), Range(above=0, high=1)

SOLVER_RANGES = {
    "BASE_LR": _NOT_NEGATIVE,
    "BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "MOMENTUM": _SHARE,
    "WEIGHT_DECAY": _NOT_NEGATIVE,
    "WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "WEIGHT_DECAY_BIAS": _NOT_NEGATIVE,
    "GAMMA": _NOT_NEGATIVE,
    "WARMUP_FACTOR": _SHARE,
    "WARMUP_ITERS": _NOT_NEGATIVE,
    "CHECKPOINTS_KEPT": Range(low=1),
    "CHECKPOINT_PERIOD": Range(low=1),
    "LOG_PERIOD": Range(low=1),
    "CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
}
LOSS_RANGES = {
    "MODEL.BOX_HEAD.BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.REID_HEAD.BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.REID_HEAD.CLS_LOSS_WEIGHT": _NOT_NEGATIVE,
    "SSL.MEMORY.LAMBDA": _SHARE,
    "SSL.THRESHOLD.INITIAL": Range(-1, 1),  # a cosine similarity
    "SSL.THRESHOLD.ALPHA": _FINITE,
    "SSL.THRESHOLD.BETA": _FINITE,
    "SSL.SCALE_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.SCALE_LOSS.MARGIN": _NOT_NEGATIVE,
    "SSL.SCALE_LOSS.GAMMA": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.DELTA": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO": _SOME_SHARE,
    "SSL.EXEMPLAR.RANDOM_ERASING": _SHARE,
    "SSL.TEACHER.MOMENTUM": _SHARE,
    "SSL.IN_SCENE_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.IN_SCENE_LOSS.MARGIN": Range(-1, 1),
    "SSL.CLUSTER_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.CLUSTER_LOSS.TEMPERATURE": _POSITIVE,
    "SSL.CLUSTER_LOSS.HARD_NEGATIVE_MASS": _SOME_SHARE,
    "SSL.CLUSTER_LOSS.EPSILON": _SHARE,
    "OIM.WEIGHT": _NOT_NEGATIVE,
    "OIM.MOMENTUM": _SHARE,
    "CGPS.CONTEXT_WEIGHT": _NOT_NEGATIVE,
    "CGPS.MARGIN": _NOT_NEGATIVE,
    "CGPS.BACKGROUND_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.REGION_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.SIMILARITY_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.SIMILARITY_TEMPERATURE": _POSITIVE,
}
TRAINING_RANGES: Mapping[str, Range] = {**{f"SOLVER.{key}": r for key, r in SOLVER_RANGES.items()}, **LOSS_RANGES}


def check_ranges(cfg: CfgNode, ranges: Mapping[str, Range] = TRAINING_RANGES) -> None:
    """Refuses numbers outside their ranges; a key whose value is None is not looked at.

    Args:
        cfg: a configuration with the project's keys.
        ranges: dotted key -> the numbers that it takes.

    Raises:
        ConfigError: naming the first such key, its value and what it takes.
    """
    for key, accepted in ranges.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value is not None and value not in accepted:
            raise ConfigError(f"{key} is {value}, expected {accepted}")


# Argument of the clusterer -> its key.
_KEYS = {
    "eps": "EPS",
    "min_samples": "MIN_SAMPLES",
    "k1": "K1",
    "k2": "K2",
    "quantile": "INDEPENDENCE_QUANTILE",
    "same_image_rule": "SAME_IMAGE_RULE",
    "eps_quantile": "EPS_QUANTILE",
    "one_to_one": "ONE_TO_ONE",
    "consensus": "CONSENSUS",
    "clusterer": "ALGORITHM",
}


def build_clusterer(cfg: CfgNode) -> SelfPacedDBSCAN:
    """The clusterer that SSL.CLUSTERING describes.

    Raises:
        ConfigError: a key of SSL.CLUSTERING holds a value that cannot work.
    """
    clustering = cfg.SSL.CLUSTERING
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
    cameras = training_set.camera_index
    if not (cameras >= 0).any():
        raise ConfigError(
            f"SSL.CLUSTERING.CAMERA_AWARE needs to know cameras, and no frame of {', '.join(cfg.DATASETS.TRAIN)} has a "
            "camera_id: set it to False"
        )
    return cameras


def check_objective(cfg: CfgNode) -> None:
    """Refuses an objective with keys that contradict it: above all identities where they must not be read.

    Raises:
        ConfigError: naming the key and what to do.
    """
    name, objective = cfg.MODEL.OBJECTIVE.NAME, objective_class(cfg)
    if objective.needs_identities and not cfg.INPUT.IDENTITIES:
        raise ConfigError(
            f"MODEL.OBJECTIVE.NAME {name} is supervised: allow it to read identities, INPUT.IDENTITIES True"
        )
    if cfg.INPUT.IDENTITIES and not objective.needs_identities:
        raise ConfigError(
            f"INPUT.IDENTITIES is True, but MODEL.OBJECTIVE.NAME {name} is weakly supervised and must not read "
            "identities: set it to False"
        )
    if cfg.SSL.TEACHER.ENABLED and not issubclass(objective, BankObjective):
        raise ConfigError(
            f"SSL.TEACHER fills memory banks, and MODEL.OBJECTIVE.NAME {name} has none: set SSL.TEACHER.ENABLED False"
        )
    exemplar = cfg.SSL.EXEMPLAR
    if exemplar.ENABLED not in objective.exemplars:
        needs = "is made of" if objective.exemplars == (True,) else "makes nothing of"
        raise ConfigError(
            f"MODEL.OBJECTIVE.NAME {name} {needs} exemplars: set SSL.EXEMPLAR.ENABLED {not exemplar.ENABLED}"
        )


def training_identities(cfg: CfgNode, training_set: TrainingSet) -> Tensor | None:
    """Identities (N,) int64 of the bank rows, numbered from 0, -1 where unknown; None unless INPUT.IDENTITIES is set.

    Raises:
        DatasetError: they are to be read, and the training set knows none.
    """
    if not cfg.INPUT.IDENTITIES:
        return None
    identities = torch.from_numpy(training_set.identities)
    if not (identities >= 0).any():
        raise DatasetError(
            f"{', '.join(cfg.DATASETS.TRAIN)}: no person has an identity, so {cfg.MODEL.OBJECTIVE.NAME} has nothing "
            "to learn from: annotate person_id, or train a weakly supervised method"
        )
    return identities


# Keys that name a registered class or function, beside META_ARCHITECTURE, and where such are registered.
_REGISTRIES = {
    "BACKBONE": BACKBONE_REGISTRY,
    "PROPOSAL_GENERATOR": PROPOSAL_GENERATOR_REGISTRY,
    "ANCHOR_GENERATOR": ANCHOR_GENERATOR_REGISTRY,
    "ROI_HEADS": ROI_HEADS_REGISTRY,
}


def check_config(cfg: CfgNode) -> None:
    """Refuses settings that this project's training cannot honour.

    Raises:
        ConfigError: naming the key and what to do.
    """
    check_inference(cfg)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise ConfigError("DATALOADER.ASPECT_RATIO_GROUPING must be False: with it a run could not resume exactly")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} is not supported: "
            "each epoch draws every frame once"
        )
    check_mixed_precision(cfg)
    check_image_keys(cfg, True)
    check_schedule_keys(cfg)
    if cfg.SSL.MEMORY.LABEL_SOURCE not in ("mean", "instance"):
        raise ConfigError(f"SSL.MEMORY.LABEL_SOURCE is {cfg.SSL.MEMORY.LABEL_SOURCE!r}, expected 'mean' or 'instance'")
    reduction = cfg.SSL.MULTI_LABEL_LOSS.REDUCTION
    if reduction not in ("sum", "mean"):
        raise ConfigError(f"SSL.MULTI_LABEL_LOSS.REDUCTION is {reduction!r}, expected 'sum' or 'mean'")
    check_ranges(cfg)
    _check_exemplars(cfg)
    _check_threshold(cfg)
    check_objective(cfg)
    check_clustering(cfg)


def visible_device(device: str) -> str:
    """MODEL.DEVICE, or "cpu" where it asks for a GPU and none is visible; a line on stderr says so."""
    if not device.startswith("cuda") or torch.cuda.is_available():
        return device
    if comm.is_main_process():
        print("No GPU is visible: running on the CPU (MODEL.DEVICE cpu).", file=sys.stderr)
    return "cpu"


def check_mixed_precision(cfg: CfgNode) -> None:
    """Refuses mixed precision where nothing trains on a GPU.

    Raises:
        ConfigError: naming the key and what to do.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return
    if not torch.cuda.is_available():
        raise ConfigError("SOLVER.AMP.ENABLED needs a GPU, and none is visible: set it to False")
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ConfigError(f"SOLVER.AMP.ENABLED needs a GPU, and MODEL.DEVICE is {cfg.MODEL.DEVICE}: set it to False")


def check_inference(cfg: CfgNode) -> None:
    """Refuses what neither a training nor an evaluation can be built from.

    Raises:
        ConfigError: naming the key and what to do.
    """
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, which is not registered: expected "
            "SSLPersonSearch, as all configs of this project have it"
        )
    for section, registry in _REGISTRIES.items():
        if cfg.MODEL[section].NAME not in registry:
            known = ", ".join(sorted(name for name, _ in registry))
            raise ConfigError(
                f"MODEL.{section}.NAME is {cfg.MODEL[section].NAME!r}, which is not registered; registered are {known}"
            )
    check_unread_keys(cfg)
    check_image_keys(cfg, False)
    if not cfg.DATALOADER.TIMEOUT >= 0:
        raise ConfigError(f"DATALOADER.TIMEOUT is {cfg.DATALOADER.TIMEOUT}, expected seconds; 0: wait for ever")
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ConfigError(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}, expected 0 "
            "(images are read by the main process) or "
            "more"
        )


def check_workers(cfg: CfgNode, is_train: bool, persons: float = 0.0) -> None:
    """Refuses worker processes whose images do not fit into shared memory.

    Args:
        cfg: a configuration with the project's keys.
        is_train: whether batches of training are meant, or single frames of evaluation.
        persons: mean number of persons in a frame; each may have a mask.

    Raises:
        ConfigError: naming DATALOADER.NUM_WORKERS, what is needed and what there is.
    """
    inputs, processes = cfg.INPUT, comm.get_world_size()
    shorter = max(inputs.MIN_SIZE_TRAIN) if is_train else inputs.MIN_SIZE_TEST
    longer = min((inputs.MAX_SIZE_TRAIN if is_train else inputs.MAX_SIZE_TEST), 2 * shorter)
    exemplar = cfg.SSL.EXEMPLAR
    masks = persons if is_train and exemplar.ENABLED and exemplar.MASK_BACKGROUND else 0
    channels = 3 * (4 if inputs.RESIZE == "torchvision" else 1)
    images = cfg.SOLVER.IMS_PER_BATCH // processes if is_train else 1
    batch_bytes = int(images * shorter * longer * (channels + masks))
    check_shared_memory(cfg.DATALOADER.NUM_WORKERS, batch_bytes, comm.get_local_size())


def _check_threshold(cfg: CfgNode) -> None:
    threshold = cfg.SSL.THRESHOLD
    if threshold.CALIBRATION not in ("none", "same_image"):
        raise ConfigError(f"SSL.THRESHOLD.CALIBRATION is {threshold.CALIBRATION!r}, expected 'none' or 'same_image'")
    if threshold.CALIBRATION == "same_image" and not 0 <= threshold.INITIAL <= threshold.INITIAL + threshold.ALPHA <= 1:
        raise ConfigError(
            f"SSL.THRESHOLD.CALIBRATION is 'same_image', so that t(e) is a quantile, and SSL.THRESHOLD has INITIAL "
            f"{threshold.INITIAL} and ALPHA {threshold.ALPHA}: expected 0 <= INITIAL <= INITIAL + ALPHA <= 1"
        )


def _check_exemplars(cfg: CfgNode) -> None:
    exemplar = cfg.SSL.EXEMPLAR
    for scale in exemplar.SCALES:
        if not isinstance(scale, (tuple, list)) or len(scale) != 2 or any(type(x) is not int or x < 1 for x in scale):
            raise ConfigError(
                f"SSL.EXEMPLAR.SCALES holds {scale!r}, expected (height, width) in pixels, such as (112, 48)"
            )
    if exemplar.BACKGROUND not in ("black", "mean"):
        raise ConfigError(f"SSL.EXEMPLAR.BACKGROUND is {exemplar.BACKGROUND!r}, expected 'black' or 'mean'")
    if exemplar.ENABLED and not exemplar.ORIGINAL and not len(exemplar.SCALES):
        raise ConfigError("SSL.EXEMPLAR has neither SCALES nor ORIGINAL: give one, or set SSL.EXEMPLAR.ENABLED False")
