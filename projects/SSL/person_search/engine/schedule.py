"""The training schedule in epochs, turned into Detectron2's iterations."""

from __future__ import annotations

import math

from detectron2.config import CfgNode

from ..errors import ConfigError


def iterations_per_epoch(num_images: int, batch_size: int) -> int:
    """Iterations in which each of `num_images` is drawn at least once; `batch_size` counts all processes."""
    return math.ceil(num_images / batch_size)


def resolve_schedule(cfg: CfgNode, num_images: int) -> CfgNode:
    """Returns a frozen copy of `cfg` whose schedule is written in iterations.

    SOLVER.MAX_ITER and SOLVER.STEPS count where MAX_ITER is above 0; otherwise SOLVER.MAX_EPOCH and STEP_EPOCHS do.
    SOLVER.CHECKPOINT_EPOCHS and TEST.EVAL_EPOCHS take over from the periods in iterations where they are above 0.

    Raises:
        ConfigError: neither length is positive, or a batch is smaller than one image.
    """
    cfg = cfg.clone()
    cfg.defrost()
    solver = cfg.SOLVER
    if solver.IMS_PER_BATCH < 1:
        raise ConfigError(f"SOLVER.IMS_PER_BATCH is {solver.IMS_PER_BATCH}, expected 1 or more")
    epoch = iterations_per_epoch(num_images, solver.IMS_PER_BATCH)
    if solver.MAX_ITER <= 0:
        if solver.MAX_EPOCH <= 0:
            raise ConfigError("SOLVER.MAX_EPOCH and SOLVER.MAX_ITER are both 0: give the length of the training")
        solver.MAX_ITER = math.ceil(solver.MAX_EPOCH * epoch)
        steps = [math.ceil(e * epoch) for e in solver.STEP_EPOCHS]
        solver.STEPS = tuple(s for s in steps if s < solver.MAX_ITER)
    if solver.CHECKPOINT_EPOCHS > 0:
        solver.CHECKPOINT_PERIOD = math.ceil(solver.CHECKPOINT_EPOCHS * epoch)
    if cfg.TEST.EVAL_EPOCHS > 0:
        cfg.TEST.EVAL_PERIOD = math.ceil(cfg.TEST.EVAL_EPOCHS * epoch)
    cfg.freeze()
    return cfg
