"""The optimizer: Detectron2's SGD or AdamW, with the clipping of all gradients together."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import build_optimizer as build_sgd
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from ..errors import ConfigError


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that SOLVER describes.

    SOLVER.OPTIMIZER is "SGD", Detectron2's, or "AdamW" with the same learning rate and weight decay keys. With
    SOLVER.CLIP_GRADIENTS.CLIP_TYPE "full_model", CLIP_VALUE bounds the norm (of type NORM_TYPE) of all gradients
    together.

    Raises:
        ConfigError: another optimizer is asked for.
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

    # Before each step: under mixed precision the gradients are unscaled by then.
    optimizer.register_step_pre_hook(clip_all)
    return optimizer


def _build(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    solver = cfg.SOLVER
    if solver.OPTIMIZER == "SGD":
        return build_sgd(cfg, model)
    if solver.OPTIMIZER != "AdamW":
        raise ConfigError(f"SOLVER.OPTIMIZER is {solver.OPTIMIZER!r}, expected 'SGD' or 'AdamW'")
    parameters = get_default_optimizer_params(
        model,
        base_lr=solver.BASE_LR,
        weight_decay_norm=solver.WEIGHT_DECAY_NORM,
        bias_lr_factor=solver.BIAS_LR_FACTOR,
        weight_decay_bias=solver.WEIGHT_DECAY_BIAS,
    )
    optimizer = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return optimizer(parameters, lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY)
