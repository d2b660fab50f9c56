"""Features of all annotated persons in one pass over the training set, for memory banks and clustering."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils import comm
from torch import Tensor, nn

from ..data.training_set import TrainingSet
from ..modeling import BankObjective, PooledFeatures, SSLPersonSearch
from ..modeling.layers import SyncedBatchNorm1d
from ..modeling.meta_arch import PersonEmbeddings
from ..progress import Progress

logger = logging.getLogger(__name__)


class Batches(Protocol):
    """Loader of known length, whose batches are lists of mapped records."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[list[dict[str, Any]]]: ...


class BankFeatures(NamedTuple):
    """Features of all N annotated persons, as they fill the banks.

    Attributes:
        persons: (N, d), f_i.
        exemplars: (N, d), f^h; None without the exemplar branch.
    """

    persons: Tensor
    exemplars: Tensor | None


@torch.no_grad()
def fill_banks(model: SSLPersonSearch, batches: Batches) -> None:
    """Fills both banks, on every process, with f_i and f^h of every annotated person.

    Args:
        model: unwrapped model with allocated banks.
        batches: this process's share of the training set, with ground truth.
    """
    objective = _bank_objective(model)
    features = extract_features(model, batches)
    rows = torch.arange(objective.size, device=features.persons.device)
    objective.instance_bank.fill(rows, features.persons)
    if objective.multi_scale_bank is not None and features.exemplars is not None:
        objective.multi_scale_bank.fill(rows, features.exemplars)


def _bank_objective(model: SSLPersonSearch) -> BankObjective:
    if not isinstance(model.objective, BankObjective):
        raise TypeError(f"{type(model.objective).__name__} has no memory banks, expected a BankObjective")
    return model.objective


def calibration_frames(training_set: TrainingSet, count: int) -> list[dict[str, Any]]:
    """Records to calibrate the embedding with, evenly spaced over all frames with persons.

    Most datasets are sorted by camera and person, so the first frames would cover one camera and few persons.

    Args:
        training_set: the whole training set.
        count: number of frames; all if there are fewer.
    """
    frames = np.unique(training_set.image_index)
    count = min(count, len(frames))
    chosen = frames[((np.arange(count) + 0.5) * len(frames) / max(count, 1)).astype(np.int64)]
    return [training_set.records[i] for i in chosen]


@torch.no_grad()
def calibrate_embedding(model: SSLPersonSearch, batches: Batches) -> None:
    """Sets the running statistics of the embedding's batch normalization to those of annotated persons and exemplars.

    Moments are computed over all rows of all processes, so they depend neither on the number of persons per frame nor
    on how frames are split over processes. An embedding without batch normalization is unchanged.

    Args:
        model: unwrapped model.
        batches: this process's share of the calibration frames, with ground truth.
    """
    embedding = model.roi_heads.reid_head.embedding
    if not any(isinstance(m, SyncedBatchNorm1d) for m in embedding.modules()):
        return
    training = model.training
    model.eval()
    parts: list[PooledFeatures] = []
    cameras: list[int | None] = []
    try:
        for batch in with_progress(batches, "Calibration of the embedding's batch normalization"):
            pooled = PooledFeatures.cat(model.pool_persons(batch).parts)
            parts.append(PooledFeatures(pooled.res4.cpu(), pooled.res5.cpu()))
            cameras += [x.get("camera_id") for x in batch]
    finally:
        model.train(training)
    gathered = comm.all_gather((parts, cameras))
    parts, cameras = ([x for own in side for x in own] for side in zip(*gathered, strict=True))
    rows = sum(len(part.res4) for part in parts)
    if rows < 2:
        logger.warning("Fewer than two persons to calibrate the embedding's batch normalization: left unchanged")
        return
    pooled = PooledFeatures.cat(parts)
    with averaged_statistics(embedding):
        # One call on all rows, since the norm-aware logit is computed from vectors normalized with final statistics.
        embedding(PooledFeatures(pooled.res4.to(model.device), pooled.res5.to(model.device)))
    known = {c for c in cameras if c is not None}
    logger.info(
        "Calibrated the embedding's batch normalization with %d boxes and exemplars of %d frames%s",
        rows, len(cameras), f", seen by {len(known)} cameras" if known else "",
    )  # fmt: skip


@torch.no_grad()
def extract_features(model: SSLPersonSearch, batches: Batches) -> BankFeatures:
    """Features f_i and f^h of every annotated person, from the network in evaluation mode. Banks are unchanged.

    Args:
        model: unwrapped model with allocated banks.
        batches: this process's share of the training set, with ground truth.

    Returns:
        Features of all persons, equal on all processes, on the model's device. Rows have unit length; persons whose
        image cannot be read are zero.
    """
    objective = _bank_objective(model)
    training = model.training
    model.eval()
    parts: list[PersonEmbeddings] = list(itertools.chain.from_iterable(comm.all_gather(_extract(model, batches))))
    model.train(training)
    instances = torch.zeros(objective.size, objective.dim)
    multi_scale = torch.zeros_like(instances) if objective.multi_scale else None
    for part in parts:
        instances[part.instance_index] = F.normalize(part.persons, dim=1)
        if multi_scale is not None and part.exemplars is not None:
            multi_scale[part.instance_index] = F.normalize(part.exemplars, dim=1)
    return BankFeatures(instances.to(model.device), None if multi_scale is None else multi_scale.to(model.device))


def _extract(model: SSLPersonSearch, batches: Batches) -> list[PersonEmbeddings]:
    parts = []
    for batch in with_progress(batches, "Features of all persons"):
        found = model.embed_persons(batch)
        exemplars = None if found.exemplars is None else found.exemplars.cpu()
        parts.append(PersonEmbeddings(found.instance_index.cpu(), found.persons.cpu(), exemplars))
    return parts


def with_progress(batches: Batches, what: str) -> Iterator[list[dict[str, Any]]]:
    """Batches of a loader, logging progress every few seconds."""
    progress = Progress(what, len(batches), "batches")
    for batch in batches:
        progress.loaded()
        yield batch
        progress.finished(1)


@contextmanager
def averaged_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch normalization resets its statistics and averages them over this process's batches."""
    with ExitStack() as stack:
        for layer in module.modules():
            if isinstance(layer, SyncedBatchNorm1d):
                stack.enter_context(layer.averaging())
        yield
