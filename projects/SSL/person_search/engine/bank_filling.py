"""Features of all annotated persons from a network in one pass, to fill the memory banks or to cluster."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor, nn

from ..modeling import SSLPersonSearch
from ..modeling.layers import SyncedBatchNorm1d, average_running_statistics

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
        _settle_statistics(model, batches, calibration_batches)
    model.train(training)
    features = extract_features(model, batches)
    for bank, rows in zip((model.objective.instance_bank, model.objective.multi_scale_bank), features, strict=True):
        if bank is not None:
            bank.fill(torch.arange(len(rows), device=rows.device), rows)


def _settle_statistics(model: SSLPersonSearch, batches: Iterable[list[dict[str, Any]]], count: int) -> None:
    """Takes the embedding's batch statistics from the first `count` batches of each process, those of one person left
    out.

    Each process averages its own first, since they may have different numbers of batches with two and more persons.
    """
    logger.info("Settling the embedding's batch normalisation on up to %d batches", count)
    seen = 0
    with averaged_statistics(model.roi_heads.embedding) as layers:
        for batch in itertools.islice(batches, count):
            if sum(len(x["instances"]) for x in batch) > 1:
                model.embed_persons(batch)
                seen += 1
    average_running_statistics(layers, weight=seen)


@torch.no_grad()
def extract_features(model: SSLPersonSearch, batches: Iterable[list[dict[str, Any]]]) -> tuple[Tensor, Tensor | None]:
    """f_i and f^h of every annotated person as the network in evaluation mode gives them; the banks stay as they are.

    Args:
        model: not wrapped; its banks are allocated.
        batches: this process's share of the training set, with ground truth.

    Returns:
        Main-branch features (N, d), and exemplar features (N, d) averaged over the scales (None without the exemplar
        branch), equal on every process and on the device of the model. Rows have unit length; those of persons that no
        batch showed, since their image cannot be read, are zero.
    """
    training = model.training
    model.eval()
    parts = list(itertools.chain.from_iterable(comm.all_gather(_extract(model, batches))))
    model.train(training)
    size = (model.objective.size, model.objective.dim)
    features = [torch.zeros(size), torch.zeros(size) if model.objective.multi_scale else None]
    for rows, *found in parts:
        for target, values in zip(features, found, strict=True):
            if target is not None:
                target[rows] = F.normalize(values, dim=1)
    instances, multi_scale = (None if t is None else t.to(model.device) for t in features)
    return instances, multi_scale


def _extract(model: SSLPersonSearch, batches: Iterable[list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    total = len(batches) if hasattr(batches, "__len__") else 0
    start = time.perf_counter()
    parts = []
    for done, batch in enumerate(batches, 1):
        parts.append(tuple(None if t is None else t.cpu() for t in model.embed_persons(batch)))
        left = (time.perf_counter() - start) / done * max(total - done, 0)
        message = f"Features of all persons: {done} of {total or '?'} batches, {left:.0f} s left"
        log_every_n_seconds(logging.INFO, message, n=10, name=__name__)
    return parts


@contextmanager
def averaged_statistics(module: nn.Module) -> Iterator[list[SyncedBatchNorm1d]]:
    """Within, batch normalisation averages the statistics of all batches of this process evenly and starts from none.

    Yields the layers.
    """
    layers = [m for m in module.modules() if isinstance(m, SyncedBatchNorm1d)]
    momenta = [m.momentum for m in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum, layer.synced = None, False
        layer.train()
    try:
        yield layers
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum, layer.synced = momentum, True
            layer.eval()
