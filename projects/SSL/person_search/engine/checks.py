"""Checks of config values, made before anything is built from them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.utils import comm
from torch import Tensor

from ..config import add_ssl_config
from ..config_files import flatten
from ..data.training_set import TrainingSet
from ..data.workers import check_shared_memory
from ..errors import ConfigError, DatasetError
from ..labels import SelfPacedDBSCAN
from ..modeling.objectives.base import BankObjective, objective_class
from ..values import INFERENCE_VALUES, TRAINING_VALUES, check_values

# Key in SSL.CLUSTERING by argument of the clusterer.
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
    """Clusterer described by SSL.CLUSTERING.

    Raises:
        ConfigError: a key of SSL.CLUSTERING has an invalid value.
    """
    clustering = cfg.SSL.CLUSTERING
    try:
        return SelfPacedDBSCAN(**{argument: clustering[key] for argument, key in _KEYS.items()})
    except ValueError as error:
        raise ConfigError(f"SSL.CLUSTERING.{_KEYS[str(error).split()[0]]}: {error}") from error


def check_clustering(cfg: CfgNode) -> None:
    """Checks SSL.CLUSTERING.

    Raises:
        ConfigError: a value is invalid, or features would be extracted for labels that no loss uses.
    """
    build_clusterer(cfg)
    if cfg.SSL.CLUSTERING.FEATURES == "extract" and not cfg.SSL.CLUSTER_LOSS.WEIGHT:
        raise ConfigError(
            "SSL.CLUSTERING.FEATURES 'extract' runs the network on the training set before each clustering, and with "
            "SSL.CLUSTER_LOSS.WEIGHT 0 no loss uses the cluster labels: set it to 'bank'"
        )


def cluster_cameras(cfg: CfgNode, training_set: TrainingSet) -> np.ndarray | None:
    """Cameras (N,) int64 of the bank rows, -1 if unknown; None if SSL.CLUSTERING.CAMERA_AWARE is off.

    Raises:
        ConfigError: clustering is camera-aware, and no frame has a camera.
    """
    if not cfg.SSL.CLUSTERING.CAMERA_AWARE:
        return None
    cameras = training_set.camera_index
    if not (cameras >= 0).any():
        raise ConfigError(
            f"SSL.CLUSTERING.CAMERA_AWARE needs cameras, and no frame of {', '.join(cfg.DATASETS.TRAIN)} has a "
            "camera_id: set it to False"
        )
    return cameras


def cluster_tracklets(cfg: CfgNode, training_set: TrainingSet) -> np.ndarray | None:
    """Tracklets (N,) int64 of the bank rows, -1 for none; None where SSL.CLUSTERING.TRACKLETS is off.

    Raises:
        ConfigError: clusters of whole tracklets where no box has one.
    """
    if not cfg.SSL.CLUSTERING.TRACKLETS:
        return None
    tracklets = training_set.tracklet_index
    if not (tracklets >= 0).any():
        raise ConfigError(
            f"SSL.CLUSTERING.TRACKLETS needs to know tracklets, and no box of {', '.join(cfg.DATASETS.TRAIN)} has a "
            "tracklet_id: set it to False"
        )
    return tracklets


def check_objective(cfg: CfgNode) -> None:
    """Checks the keys that depend on the objective: identities, teacher and exemplars.

    Raises:
        ConfigError: a key contradicts the objective.
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
        needs = "needs" if objective.exemplars == (True,) else "does not use"
        raise ConfigError(
            f"MODEL.OBJECTIVE.NAME {name} {needs} exemplars: set SSL.EXEMPLAR.ENABLED {not exemplar.ENABLED}"
        )


def training_identities(cfg: CfgNode, training_set: TrainingSet) -> Tensor | None:
    """Identities (N,) int64 of the bank rows, numbered from 0, -1 if unknown; None unless INPUT.IDENTITIES is set.

    Raises:
        DatasetError: INPUT.IDENTITIES is set, and the training set has no identities.
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


# Registries of the keys MODEL.<section>.NAME.
_REGISTRIES = {
    "BACKBONE": BACKBONE_REGISTRY,
    "PROPOSAL_GENERATOR": PROPOSAL_GENERATOR_REGISTRY,
    "ANCHOR_GENERATOR": ANCHOR_GENERATOR_REGISTRY,
    "ROI_HEADS": ROI_HEADS_REGISTRY,
}


def check_config(cfg: CfgNode) -> None:
    """Checks a config for training.

    Raises:
        ConfigError: a value is invalid or not supported; the message names the key and what to do.
    """
    check_inference(cfg)
    check_values(cfg, TRAINING_VALUES)
    if cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise ConfigError("DATALOADER.ASPECT_RATIO_GROUPING must be False: grouped batches cannot be resumed exactly")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ConfigError(
            f"DATALOADER.SAMPLER_TRAIN {cfg.DATALOADER.SAMPLER_TRAIN} is not supported: "
            "each epoch draws every frame once"
        )
    check_mixed_precision(cfg)
    check_image_keys(cfg)
    check_schedule_keys(cfg)
    _check_exemplars(cfg)
    _check_threshold(cfg)
    check_objective(cfg)
    check_clustering(cfg)


def visible_device(device: str) -> str:
    """MODEL.DEVICE, or "cpu", with a line on stderr, if it is a GPU and none is visible."""
    if not device.startswith("cuda") or torch.cuda.is_available():
        return device
    if comm.is_main_process():
        print("No GPU is visible: running on the CPU (MODEL.DEVICE cpu).", file=sys.stderr)
    return "cpu"


def check_mixed_precision(cfg: CfgNode) -> None:
    """Checks that mixed precision is used on a GPU only.

    Raises:
        ConfigError: SOLVER.AMP.ENABLED is set without a GPU.
    """
    if not cfg.SOLVER.AMP.ENABLED:
        return
    if not torch.cuda.is_available():
        raise ConfigError("SOLVER.AMP.ENABLED needs a GPU, and none is visible: set it to False")
    if not cfg.MODEL.DEVICE.startswith("cuda"):
        raise ConfigError(f"SOLVER.AMP.ENABLED needs a GPU, and MODEL.DEVICE is {cfg.MODEL.DEVICE}: set it to False")


def check_inference(cfg: CfgNode) -> None:
    """Checks the keys that training and evaluation have in common.

    Raises:
        ConfigError: a value is invalid or not supported; the message names the key and what to do.
    """
    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        raise ConfigError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE!r}, which is not registered: expected "
            "SSLPersonSearch, as in all configs of this project"
        )
    for section, registry in _REGISTRIES.items():
        if cfg.MODEL[section].NAME not in registry:
            known = ", ".join(sorted(name for name, _ in registry))
            raise ConfigError(
                f"MODEL.{section}.NAME is {cfg.MODEL[section].NAME!r}, which is not registered; registered are {known}"
            )
    check_unread_keys(cfg)
    check_values(cfg, INFERENCE_VALUES)


def check_workers(cfg: CfgNode, is_train: bool, persons: float = 0.0) -> None:
    """Checks that the images of the worker processes fit into shared memory.

    Args:
        cfg: config with the project's keys.
        is_train: whether to check for training batches or for single frames of an evaluation.
        persons: mean number of persons per frame; each may have a mask.

    Raises:
        ConfigError: shared memory is too small for DATALOADER.NUM_WORKERS; the message names both sizes.
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
    if threshold.CALIBRATION == "same_image" and not 0 <= threshold.INITIAL <= threshold.INITIAL + threshold.ALPHA <= 1:
        raise ConfigError(
            f"SSL.THRESHOLD.CALIBRATION 'same_image' makes t(e) a quantile, and SSL.THRESHOLD has INITIAL "
            f"{threshold.INITIAL} and ALPHA {threshold.ALPHA}: expected 0 <= INITIAL <= INITIAL + ALPHA <= 1"
        )


def _check_exemplars(cfg: CfgNode) -> None:
    exemplar = cfg.SSL.EXEMPLAR
    for scale in exemplar.SCALES:
        if not isinstance(scale, (tuple, list)) or len(scale) != 2 or any(type(x) is not int or x < 1 for x in scale):
            raise ConfigError(
                f"SSL.EXEMPLAR.SCALES holds {scale!r}, expected (height, width) in pixels, such as (112, 48)"
            )
    if exemplar.ENABLED and not exemplar.ORIGINAL and not len(exemplar.SCALES):
        raise ConfigError("SSL.EXEMPLAR has neither SCALES nor ORIGINAL: give one, or set SSL.EXEMPLAR.ENABLED False")


_HEADS = "the heads are configured by MODEL.BOX_HEAD and MODEL.REID_HEAD"
_PERSONS = "the only class is person, detected as a box"
# Reason by prefix of a key.
UNREAD_KEYS: Mapping[str, str] = {
    "DATALOADER.REPEAT_": "each epoch draws every frame once",
    "DATASETS.PRECOMPUTED_PROPOSAL": "proposals come from the RPN",
    "DATASETS.PROPOSAL_FILES": "proposals come from the RPN",
    "GLOBAL.HACK": "it is for experiments with Detectron2 itself",
    "INPUT.MASK_FORMAT": "foreground masks are read in any format",
    "MODEL.FPN": "the backbone has no feature pyramid",
    "MODEL.KEYPOINT_ON": _PERSONS,
    "MODEL.LOAD_PROPOSALS": "proposals come from the RPN",
    "MODEL.MASK_ON": _PERSONS,
    "MODEL.PANOPTIC_FPN": _PERSONS,
    "MODEL.RETINANET": _HEADS,
    "MODEL.ROI_BOX_CASCADE_HEAD": _HEADS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": "use BOX_LOSS_WEIGHT of MODEL.BOX_HEAD and MODEL.REID_HEAD",
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": _PERSONS,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": _HEADS,
    "MODEL.ROI_BOX_HEAD.FC_DIM": _HEADS,
    "MODEL.ROI_BOX_HEAD.FED_LOSS": _PERSONS,
    "MODEL.ROI_BOX_HEAD.NAME": _HEADS,
    "MODEL.ROI_BOX_HEAD.NORM": _HEADS,
    "MODEL.ROI_BOX_HEAD.NUM_": _HEADS,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": _HEADS,
    "MODEL.ROI_BOX_HEAD.USE_": _PERSONS,
    "MODEL.ROI_KEYPOINT_HEAD": _PERSONS,
    "MODEL.ROI_MASK_HEAD": _PERSONS,
    "MODEL.SEM_SEG_HEAD": _PERSONS,
    "TEST.AUG": "each frame is searched at one size",
    "TEST.KEYPOINT_OKS_SIGMAS": _PERSONS,
    "TEST.PRECISE_BN": "the embedding's statistics are calibrated before training, SSL.MEMORY.CALIBRATION_FRAMES",
}
"""Unused keys of Detectron2, or prefixes of them, with the reason."""


def check_unread_keys(cfg: CfgNode) -> None:
    """Checks that unused keys of Detectron2 have their defaults. Models with custom heads are not checked.

    Raises:
        ConfigError: an unused key is set; the message names it and what is used instead.
    """
    heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    if not heads.__module__.startswith("person_search."):
        return
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, expected 1: the only class is person, "
            "and background is not counted"
        )
    defaults = get_cfg()
    add_ssl_config(defaults)
    before, now = flatten(defaults), flatten(cfg)
    for key, default in before.items():
        reason = next((why for start, why in UNREAD_KEYS.items() if key.startswith(start)), None)
        if key.startswith("MODEL.FPN") and "fpn" in cfg.MODEL.BACKBONE.NAME.lower():
            continue
        if reason is not None and now.get(key, default) != default:
            raise ConfigError(f"{key} is {now[key]!r}, but it is not used here ({reason}): leave it at {default!r}")


def check_image_keys(cfg: CfgNode) -> None:
    """Checks sizes and crops of training images, which Detectron2 does not.

    Raises:
        ConfigError: a value is invalid; the message names key and accepted values.
    """
    inputs = cfg.INPUT
    sizes = inputs.MIN_SIZE_TRAIN
    if not len(sizes) or min(sizes) < 1:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, expected one or more lengths of the shorter side in pixels, such as "
            "(900,)"
        )
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, but INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' expects (smallest, largest)"
        )
    if inputs.CROP.ENABLED:
        check_values(cfg, ["INPUT.CROP.TYPE"])
        most = 1.0 if inputs.CROP.TYPE.startswith("relative") else math.inf
        if len(inputs.CROP.SIZE) != 2 or not all(0 < side <= most for side in inputs.CROP.SIZE):
            raise ConfigError(
                f"INPUT.CROP.SIZE is {inputs.CROP.SIZE}, expected (height, width) as "
                f"{'fractions of the frame' if most == 1 else 'pixels'} for INPUT.CROP.TYPE {inputs.CROP.TYPE}"
            )


def check_schedule_keys(cfg: CfgNode) -> None:
    """Checks learning-rate schedule and gradient clipping, which Detectron2 does not.

    Raises:
        ConfigError: a value is invalid; the message names key and accepted values.
    """
    solver = cfg.SOLVER
    if solver.CLIP_GRADIENTS.ENABLED:
        check_values(cfg, ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "SOLVER.CLIP_GRADIENTS.NORM_TYPE"])
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR > 0:
        raise ConfigError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}, expected a rate from 0 to SOLVER.BASE_LR, which is "
            f"{solver.BASE_LR} and must be above 0 for WarmupCosineLR"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR":
        check_values(cfg, ["SOLVER.NUM_DECAYS"])
    for key in ("STEPS", "STEP_EPOCHS"):
        steps: Any = list(solver[key])
        if steps != sorted(set(steps)) or any(step <= 0 for step in steps):
            raise ConfigError(f"SOLVER.{key} is {tuple(steps)}, expected increasing numbers above 0")
