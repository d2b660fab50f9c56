"""Fills the memory banks from a network: one pass over the annotated persons of the training set."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import nn

from ..modeling import SSLPersonSearch

logger = logging.getLogger(__name__)


@torch.no_grad()
def fill_banks(model: SSLPersonSearch, batches: Iterable[list[dict[str, Any]]], calibration_batches: int) -> None:
    """Extracts f_i and f^h of every annotated person and writes them into both banks of every process.

    Args:
        model: not wrapped; its banks are allocated.
        batches: this process's share of the training set, with ground truth; iterated twice.
        calibration_batches: batches that first settle the embedding's batch normalisation; 0 for none.
    """
    training = model.training
    model.eval()
    if calibration_batches:
        logger.info("Settling the embedding's batch normalisation on up to %d batches", calibration_batches)
        with averaged_statistics(model.roi_heads.embedding):
            for batch in itertools.islice(batches, calibration_batches):
                if sum(len(x["instances"]) for x in batch) > 1:
                    model.embed_persons(batch)
        _share_statistics(model.roi_heads.embedding)
    parts = _extract(model, batches)
    for rows, instances, multi_scale in itertools.chain.from_iterable(comm.all_gather(parts)):
        device = model.device
        model.objective.instance_bank.fill(rows.to(device), instances.to(device))
        if multi_scale is not None:
            model.objective.multi_scale_bank.fill(rows.to(device), multi_scale.to(device))
    model.train(training)


def _extract(model: SSLPersonSearch, batches: Iterable[list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    total = len(batches) if hasattr(batches, "__len__") else 0
    start = time.perf_counter()
    parts = []
    for done, batch in enumerate(batches, 1):
        parts.append(tuple(None if t is None else t.cpu() for t in model.embed_persons(batch)))
        left = (time.perf_counter() - start) / done * max(total - done, 0)
        message = f"Filling the memory banks: {done} of {total or '?'} batches, {left:.0f} s left"
        log_every_n_seconds(logging.INFO, message, n=10, name=__name__)
    return parts


@contextmanager
def averaged_statistics(module: nn.Module):
    """Within, batch normalisation averages the statistics of all batches evenly and starts from none."""
    layers = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d)]
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
    try:
        yield
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
            layer.eval()


def _share_statistics(module: nn.Module) -> None:
    """Averages the statistics over the processes, so that all fill the banks with the same network."""
    if comm.get_world_size() == 1:
        return
    for layer in (m for m in module.modules() if isinstance(m, nn.BatchNorm1d)):
        for name in ("running_mean", "running_var"):
            value = getattr(layer, name)
            value.copy_(torch.stack([v.to(value) for v in comm.all_gather(value.cpu())]).mean(dim=0))
