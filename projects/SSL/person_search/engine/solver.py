"""Optimizer and schedule: Detectron2's, with AdamW, clipping of the total gradient norm, and epochs."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from detectron2.solver.lr_scheduler import LRMultiplier
from torch import nn

from ..errors import ConfigError
from ..values import check_values


def iterations_per_epoch(num_images: int, batch_size: int) -> int:
    """Number of iterations in which every image is drawn at least once; `batch_size` is over all processes."""
    return math.ceil(num_images / batch_size)


def resolve_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """Frozen copy of a config with its schedule in iterations.

    SOLVER.MAX_ITER and SOLVER.STEPS apply if MAX_ITER is positive, otherwise SOLVER.MAX_EPOCH and STEP_EPOCHS.
    SOLVER.CHECKPOINT_EPOCHS and TEST.EVAL_EPOCHS, if positive, override the periods in iterations.

    Raises:
        ConfigError: neither MAX_ITER nor MAX_EPOCH is positive, or SOLVER.IMS_PER_BATCH is below 1.
    """
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    check_values(cfg, ["SOLVER.IMS_PER_BATCH"])
    epoch = iterations_per_epoch(num_images, solver.IMS_PER_BATCH)
    if solver.MAX_ITER <= 0:
        if solver.MAX_EPOCH <= 0:
            raise ConfigError("SOLVER.MAX_EPOCH and SOLVER.MAX_ITER are both 0: set the length of the training")
        solver.MAX_ITER = math.ceil(solver.MAX_EPOCH * epoch)
        steps = [math.ceil(e * epoch) for e in solver.STEP_EPOCHS]
        solver.STEPS = tuple(s for s in steps if s < solver.MAX_ITER)
    if solver.CHECKPOINT_EPOCHS > 0:
        solver.CHECKPOINT_PERIOD = math.ceil(solver.CHECKPOINT_EPOCHS * epoch)
    if cfg.TEST.EVAL_EPOCHS > 0:
        cfg.TEST.EVAL_PERIOD = math.ceil(cfg.TEST.EVAL_EPOCHS * epoch)
    cfg.freeze()
    return cfg


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Optimizer described by SOLVER.

    SOLVER.OPTIMIZER is "SGD" (Detectron2's) or "AdamW" with the same learning rate and weight decay keys. With
    SOLVER.CLIP_GRADIENTS.CLIP_TYPE "full_model", CLIP_VALUE limits the total norm (of type NORM_TYPE) of all gradients.

    Raises:
        ConfigError: SOLVER.OPTIMIZER is unknown.
    """
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return _build(cfg, model)
    plain = cfg.clone()
    plain.defrost()
    plain.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = _build(plain, model)
    parameters = list(itertools.chain.from_iterable(g["params"] for g in optimizer.param_groups))

    def clip_all(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

    # Runs before each step, when mixed precision has unscaled the gradients.
    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def _build(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    check_values(cfg, ["SOLVER.OPTIMIZER"])
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)


class OptimizerSettings:
    """Settings of an optimizer from its config: learning rates, weight decay, momentum.

    Loading an optimizer's checkpoint also loads its old settings; `apply` restores those of the config.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """
        Args:
            optimizer: new optimizer, with rates not yet changed by a scheduler.
        """
        self._groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]

    def apply(self, optimizer: torch.optim.Optimizer, scheduler: LRMultiplier) -> None:
        """Restores the settings, with the scheduler's learning rates at its current iteration."""
        scheduler.base_lrs = [settings["lr"] for settings in self._groups]
        rates = scheduler.get_lr()
        for group, settings, rate in zip(optimizer.param_groups, self._groups, rates, strict=True):
            group.update(settings, initial_lr=settings["lr"], lr=rate)
        scheduler._last_lr = list(rates)
