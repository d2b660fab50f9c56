"""Detectron2's own keys: those that nothing here reads are refused, the others have to hold what they can."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY

from ..config import add_ssl_config
from ..config_files import flatten
from ..errors import ConfigError

_HEADS = "the heads are MODEL.BOX_HEAD and MODEL.REID_HEAD"
_PERSONS = "the one class is the person, found as a box"
_UNREAD: Mapping[str, str] = {
    "DATALOADER.REPEAT_": "each epoch draws every frame once",
    "DATASETS.PRECOMPUTED_PROPOSAL": "proposals come from the RPN",
    "DATASETS.PROPOSAL_FILES": "proposals come from the RPN",
    "GLOBAL.HACK": "it is for experiments with Detectron2 itself",
    "INPUT.MASK_FORMAT": "foreground masks are read in whatever form they have",
    "MODEL.FPN": "the backbone has no feature pyramid",
    "MODEL.KEYPOINT_ON": _PERSONS,
    "MODEL.LOAD_PROPOSALS": "proposals come from the RPN",
    "MODEL.MASK_ON": _PERSONS,
    "MODEL.PANOPTIC_FPN": _PERSONS,
    "MODEL.RETINANET": _HEADS,
    "MODEL.ROI_BOX_CASCADE_HEAD": _HEADS,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": "it is BOX_LOSS_WEIGHT of MODEL.BOX_HEAD and of MODEL.REID_HEAD",
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
    "TEST.PRECISE_BN": "the statistics of the embedding are counted before training, SSL.MEMORY.CALIBRATION_FRAMES",
}


def check_unread_keys(cfg: CfgNode) -> None:
    """Refuses keys of Detectron2 that are set and that nothing here would heed.

    A model with heads of the user's own may read what it likes, and is not checked.

    Raises:
        ConfigError: naming the first such key, and what there is in its place.
    """
    heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    if not heads.__module__.startswith("person_search."):
        return
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != 1:
        raise ConfigError(
            f"MODEL.ROI_HEADS.NUM_CLASSES is {cfg.MODEL.ROI_HEADS.NUM_CLASSES}, expected 1: the one class is the "
            "person, and the background is not counted"
        )
    defaults = get_cfg()
    add_ssl_config(defaults)
    before, now = flatten(defaults), flatten(cfg)
    for key, default in before.items():
        reason = next((why for start, why in _UNREAD.items() if key.startswith(start)), None)
        if key.startswith("MODEL.FPN") and "fpn" in cfg.MODEL.BACKBONE.NAME.lower():
            continue
        if reason is not None and now.get(key, default) != default:
            raise ConfigError(f"{key} is {now[key]!r}, but nothing here reads it ({reason}): leave it at {default!r}")


_CROPS = ("relative", "relative_range", "absolute", "absolute_range")


def check_image_keys(cfg: CfgNode, is_train: bool) -> None:
    """Refuses sizes, flips and crops of the pictures that Detectron2 would stumble over.

    Raises:
        ConfigError: naming the key and what it takes.
    """
    inputs = cfg.INPUT
    for key in ("MAX_SIZE_TRAIN", "MAX_SIZE_TEST") if is_train else ("MAX_SIZE_TEST",):
        if inputs[key] < 1:
            raise ConfigError(
                f"INPUT.{key} is {inputs[key]}, expected the largest length of the longer side in pixels; a large "
                "number such as 100000 sets no bound"
            )
    if inputs.MIN_SIZE_TEST < 0:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TEST is {inputs.MIN_SIZE_TEST}, expected pixels, or 0: frames stay as they are"
        )
    if not is_train:
        return
    sizes = inputs.MIN_SIZE_TRAIN
    if not len(sizes) or min(sizes) < 1:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, expected one or more lengths of the shorter side in pixels, such as "
            "(900,)"
        )
    _expect_one_of(cfg, "INPUT.MIN_SIZE_TRAIN_SAMPLING", ("choice", "range"))
    if inputs.MIN_SIZE_TRAIN_SAMPLING == "range" and len(sizes) != 2:
        raise ConfigError(
            f"INPUT.MIN_SIZE_TRAIN is {sizes}, but INPUT.MIN_SIZE_TRAIN_SAMPLING 'range' expects (smallest, largest)"
        )
    _expect_one_of(cfg, "INPUT.RANDOM_FLIP", ("none", "horizontal", "vertical"))
    if inputs.CROP.ENABLED:
        _expect_one_of(cfg, "INPUT.CROP.TYPE", _CROPS)
        most = 1.0 if inputs.CROP.TYPE.startswith("relative") else math.inf
        if len(inputs.CROP.SIZE) != 2 or not all(0 < side <= most for side in inputs.CROP.SIZE):
            raise ConfigError(
                f"INPUT.CROP.SIZE is {inputs.CROP.SIZE}, expected (height, width) as "
                f"{'shares of the frame from 0 to 1' if most == 1 else 'pixels'} for INPUT.CROP.TYPE {inputs.CROP.TYPE}"
            )


def check_schedule_keys(cfg: CfgNode) -> None:
    """Refuses learning-rate schedules and gradient clipping that Detectron2 would stumble over.

    Raises:
        ConfigError: naming the key and what it takes.
    """
    solver = cfg.SOLVER
    _expect_one_of(
        cfg, "SOLVER.LR_SCHEDULER_NAME", ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
    )
    _expect_one_of(cfg, "SOLVER.WARMUP_METHOD", ("linear", "constant"))
    if solver.CLIP_GRADIENTS.ENABLED:
        _expect_one_of(cfg, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", ("full_model", "norm", "value"))
        if not solver.CLIP_GRADIENTS.NORM_TYPE > 0:
            raise ConfigError(
                f"SOLVER.CLIP_GRADIENTS.NORM_TYPE is {solver.CLIP_GRADIENTS.NORM_TYPE}, expected a number above 0"
            )
    if solver.LR_SCHEDULER_NAME == "WarmupCosineLR" and not 0 <= solver.BASE_LR_END <= solver.BASE_LR > 0:
        raise ConfigError(
            f"SOLVER.BASE_LR_END is {solver.BASE_LR_END}, expected a rate from 0 to SOLVER.BASE_LR, which is "
            f"{solver.BASE_LR} and must be above 0 for WarmupCosineLR"
        )
    if solver.LR_SCHEDULER_NAME == "WarmupStepWithFixedGammaLR" and solver.NUM_DECAYS < 1:
        raise ConfigError(f"SOLVER.NUM_DECAYS is {solver.NUM_DECAYS}, expected 1 or more")
    for key in ("STEPS", "STEP_EPOCHS"):
        steps: Any = list(solver[key])
        if steps != sorted(set(steps)) or any(step <= 0 for step in steps):
            raise ConfigError(f"SOLVER.{key} is {tuple(steps)}, expected rising numbers above 0")


def _expect_one_of(cfg: CfgNode, key: str, known: tuple[str, ...]) -> None:
    value: Any = cfg
    for part in key.split("."):
        value = value[part]
    if value not in known:
        raise ConfigError(f"{key} is {value!r}, expected one of {', '.join(known)}")
