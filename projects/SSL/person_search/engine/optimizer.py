"""The optimizer, with the clipping of all gradients together that Detectron2 leaves to its projects."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_detectron2_optimizer
from torch import nn


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """Detectron2's optimizer. SOLVER.CLIP_GRADIENTS.CLIP_TYPE may also be "full_model": then CLIP_VALUE bounds the norm
    (of type NORM_TYPE) of all gradients together."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED or clip.CLIP_TYPE != "full_model":
        return build_detectron2_optimizer(cfg, model)
    plain = cfg.clone()
    plain.defrost()
    plain.SOLVER.CLIP_GRADIENTS.ENABLED = False
    optimizer = build_detectron2_optimizer(plain, model)
    parameters = list(itertools.chain.from_iterable(g["params"] for g in optimizer.param_groups))

    def clip_all(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, clip.CLIP_VALUE, norm_type=clip.NORM_TYPE)

    # Before each step: under mixed precision the gradients are unscaled by then.
    optimizer.register_step_pre_hook(clip_all)
    return optimizer
