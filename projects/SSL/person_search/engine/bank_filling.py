"""Features of all annotated persons from a network in one pass, to fill the memory banks or to cluster."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.training_set import TrainingSet
from ..modeling import PooledFeatures, SSLPersonSearch
from ..modeling.layers import SyncedBatchNorm1d
from ..progress import Progress

logger = logging.getLogger(__name__)


@torch.no_grad()
def fill_banks(model: SSLPersonSearch, batches: Collection[list[dict[str, Any]]]) -> None:
    """Extracts f_i and f^h of every annotated person and writes them into both banks of every process.

    Args:
        model: not wrapped; its banks are allocated.
        batches: this process's share of the training set, with ground truth.
    """
    features = extract_features(model, batches)
    for bank, rows in zip((model.objective.instance_bank, model.objective.multi_scale_bank), features, strict=True):
        if bank is not None:
            bank.fill(torch.arange(len(rows), device=rows.device), rows)


def calibration_frames(training_set: TrainingSet, count: int) -> list[dict[str, Any]]:
    """Records to calibrate the embedding with, spread evenly over all frames that show persons.

    Frames of a camera, and of a person, lie side by side in most data sets: the first ones alone would speak of one
    camera and few persons.

    Args:
        training_set: all of the training set.
        count: how many; where there are fewer frames, all.
    """
    frames = np.unique(training_set.image_index)
    count = min(count, len(frames))
    chosen = frames[((np.arange(count) + 0.5) * len(frames) / max(count, 1)).astype(np.int64)]
    return [training_set.records[i] for i in chosen]


@torch.no_grad()
def calibrate_embedding(model: SSLPersonSearch, batches: Collection[list[dict[str, Any]]]) -> None:
    """Sets the running statistics of the embedding's batch normalisation to those of annotated persons and exemplars.

    First and second moments are those of all rows of all processes together, so that neither the number of persons in
    a frame nor the spread over processes matters. An embedding without batch normalisation stays as it is.

    Args:
        model: not wrapped.
        batches: this process's share of the frames to calibrate with, with ground truth.
    """
    embedding = model.roi_heads.reid_head.embedding
    if not any(isinstance(m, SyncedBatchNorm1d) for m in embedding.modules()):
        return
    training = model.training
    model.eval()
    parts: list[PooledFeatures] = []
    cameras: list[int | None] = []
    try:
        for batch in with_progress(batches, "Calibration of the embedding's batch normalisation"):
            pooled = PooledFeatures.cat(model.pool_persons(batch).parts)
            parts.append(PooledFeatures(pooled.res4.cpu(), pooled.res5.cpu()))
            cameras += [x.get("camera_id") for x in batch]
    finally:
        model.train(training)
    gathered = comm.all_gather((parts, cameras))
    parts, cameras = ([x for own in side for x in own] for side in zip(*gathered, strict=True))
    rows = sum(len(part.res4) for part in parts)
    if rows < 2:
        logger.warning("No two persons to calibrate the embedding's batch normalisation with: it stays as it is")
        return
    pooled = PooledFeatures.cat(parts)
    with averaged_statistics(embedding):
        # One call on all rows: the norm-aware logit is normalised over vectors that final statistics have normalised.
        embedding(PooledFeatures(pooled.res4.to(model.device), pooled.res5.to(model.device)))
    known = {c for c in cameras if c is not None}
    logger.info(
        "Calibrated the embedding's batch normalisation with %d boxes and exemplars of %d frames%s",
        rows, len(cameras), f", seen by {len(known)} cameras" if known else "",
    )  # fmt: skip


@torch.no_grad()
def extract_features(model: SSLPersonSearch, batches: Collection[list[dict[str, Any]]]) -> tuple[Tensor, Tensor | None]:
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


def _extract(model: SSLPersonSearch, batches: Collection[list[dict[str, Any]]]) -> list[tuple[Any, ...]]:
    parts = []
    for batch in with_progress(batches, "Features of all persons"):
        parts.append(tuple(None if t is None else t.cpu() for t in model.embed_persons(batch)))
    return parts


def with_progress(batches: Collection[list[dict[str, Any]]], what: str) -> Iterator[list[dict[str, Any]]]:
    """Batches as they come, with a line every few seconds about how many are done."""
    progress = Progress(what, len(batches), "batches")
    for batch in batches:
        progress.loaded()
        yield batch
        progress.finished(1)


@contextmanager
def averaged_statistics(module: nn.Module) -> Iterator[None]:
    """Within, batch normalisation averages the statistics of all batches of this process evenly and starts anew."""
    layers = [m for m in module.modules() if isinstance(m, SyncedBatchNorm1d)]
    kept = [(m.momentum, m.training) for m in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum, layer.synced = None, False
        layer.train()
    try:
        yield
    finally:
        for layer, (momentum, training) in zip(layers, kept, strict=True):
            layer.momentum, layer.synced = momentum, True
            layer.train(training)
