"""Refusal of config values that cannot work, before anything is built from them."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY

from ..errors import ConfigError
from .clustering import check_clustering
from .objective import check_objective
from .value_ranges import check_ranges

_SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
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
    if not len(cfg.INPUT.MIN_SIZE_TRAIN) or min(cfg.INPUT.MIN_SIZE_TRAIN) < 1:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {cfg.INPUT.MIN_SIZE_TRAIN}, expected one or more lengths of the shorter side in "
            "pixels, such as (900,)"
        )
    if cfg.SSL.MEMORY.LABEL_SOURCE not in ("mean", "instance"):
        raise ConfigError(f"SSL.MEMORY.LABEL_SOURCE is {cfg.SSL.MEMORY.LABEL_SOURCE!r}, expected 'mean' or 'instance'")
    if cfg.SOLVER.LR_SCHEDULER_NAME not in _SCHEDULERS:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME is {cfg.SOLVER.LR_SCHEDULER_NAME!r}, expected one of {', '.join(_SCHEDULERS)}"
        )
    check_ranges(cfg)
    _check_exemplars(cfg)
    check_objective(cfg)
    check_clustering(cfg)


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
    if cfg.DATALOADER.NUM_WORKERS < 0:
        raise ConfigError(
            f"DATALOADER.NUM_WORKERS is {cfg.DATALOADER.NUM_WORKERS}, expected 0 "
            "(images are read by the main process) or "
            "more"
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
