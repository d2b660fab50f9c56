"""Hooks that schedule memory banks, pseudo labels, seeds and logging around the iterations."""

from __future__ import annotations

import copy
import datetime
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from detectron2.engine import hooks
from detectron2.engine.hooks import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter
from torch import nn

from ..data.training_set import TrainingSet
from ..errors import TrainingError
from ..labels import (
    DynamicThreshold,
    SelfPacedDBSCAN,
    calibrated_threshold,
    invalid_rows,
    multi_label_precision_recall,
    pair_precision_recall,
)
from ..modeling import BankObjective, MultiLabelObjective, ReIDObjective, SSLPersonSearch
from ..modeling.layers import average_running_statistics, unsynced_norms

logger = logging.getLogger(__name__)


def seed_generators(*entropy: int) -> None:
    """Seeds `random`, numpy and torch, GPUs included, from non-negative integers."""
    seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class SeedIterations(HookBase):
    """Seeds all random generators from (seed of the trainer, iteration, rank) before each iteration.

    Random numbers then depend on the iteration alone: a resumed run draws the same ones as an uninterrupted run, on
    every process, without storing generator states.
    """

    def before_step(self) -> None:
        seed_generators(self.trainer.seed, self.trainer.iter, comm.get_rank())


class EvaluateUntrained(HookBase):
    """Evaluates the untrained network before the first iteration and logs its metrics under "untrained/"."""

    def __init__(self, evaluate: Callable[[], dict[str, Any]]) -> None:
        self._evaluate = evaluate

    def before_train(self) -> None:
        if self.trainer.iter == 0:
            results = flatten_results_dict(self._evaluate() or {})
            self.trainer.storage.put_scalars(
                smoothing_hint=False, **{f"untrained/{name}": value for name, value in results.items()}
            )
            comm.synchronize()


class FillBanks(HookBase):
    """Fills both memory banks from the initial network before the first iteration; skipped in resumed runs."""

    def __init__(self, fill: Callable[[], None]) -> None:
        self._fill = fill

    def before_train(self) -> None:
        if self.trainer.iter == 0:
            self._fill()
            comm.synchronize()


class ThresholdSchedule(HookBase):
    """Sets the objective's multi-label threshold of the epoch, t(e) of Eq. 9, before each iteration.

    t(e) is either the threshold itself or a quantile: the threshold is then that quantile of the similarities between
    persons of one image, taken from the banks at the start of the epoch. The hook runs before `ClusterLabels`, which
    evaluates multi-labels at the epoch's threshold.
    """

    def __init__(
        self,
        objective: MultiLabelObjective,
        threshold: DynamicThreshold,
        *,
        iterations_per_epoch: int,
        calibrated: bool,
    ) -> None:
        """
        Args:
            objective: objective that receives the thresholds.
            threshold: t(e) by epoch.
            iterations_per_epoch: length of an epoch.
            calibrated: whether t(e) is a quantile.
        """
        self._objective, self._threshold = objective, threshold
        self._iterations_per_epoch = iterations_per_epoch
        self._calibrated = calibrated
        self._current: float | None = None

    def before_step(self) -> None:
        epoch, iteration = divmod(self.trainer.iter, self._iterations_per_epoch)
        if not self._calibrated:
            self._current = self._threshold.at(epoch)
        elif iteration == 0 or self._current is None:
            self._current = self._calibrate(epoch)
        self._objective.set_threshold(self._current)
        if iteration == 0:
            self.trainer.storage.put_scalar("pseudo_labels/threshold", self._current, smoothing_hint=False)

    def _calibrate(self, epoch: int) -> float:
        quantile = self._threshold.at(epoch)
        threshold = calibrated_threshold(self._objective.label_features(), self._objective.image_index, quantile)
        if threshold is None:
            raise TrainingError(
                "SSL.THRESHOLD.CALIBRATION 'same_image' needs images with two persons or more, and the training set "
                "has none: set it to 'none'"
            )
        logger.info("Multi-label threshold: %.3f, quantile %.3f over persons of one image", threshold, quantile)
        return threshold

    def state_dict(self) -> dict[str, Any]:
        """State with the current threshold; banks change within an epoch, so it cannot be computed again."""
        return {"threshold": self._current}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self._current = state_dict["threshold"]


class ClusterLabels(HookBase):
    """Clusters bank rows or freshly extracted features, every `iterations` iterations.

    All processes check and, if requested, extract features. The main process clusters and broadcasts the labels to the
    others, which wait without the usual timeout of collectives. If identities are known, precision and recall of the
    pseudo labels are logged, and identities are used for nothing else.
    """

    # Number of rows used to evaluate multi-labels; all N would need an N x N similarity matrix.
    JUDGED_ROWS = 1000

    def __init__(
        self,
        objective: BankObjective,
        clusterer: SelfPacedDBSCAN,
        training_set: TrainingSet,
        iterations: int,
        *,
        cameras: np.ndarray | None = None,
        tracklets: np.ndarray | None = None,
        extract: Callable[[], torch.Tensor] | None = None,
    ) -> None:
        """
        Args:
            objective: objective with the banks, which receives the labels.
            clusterer: clustering algorithm; its frozen threshold is this hook's state.
            training_set: source of frame names in messages, and of identities for the diagnostics.
            iterations: number of iterations between clusterings.
            cameras: (N,) int64, camera of each bank row (-1 if unknown), for camera-aware clustering; None for none.
            tracklets: (N,) int64, tracklet of each bank row (-1 if none), to keep tracklets whole; None for none.
            extract: returns the features (N, d) to cluster, called on every process; None for the bank rows.
        """
        self.objective, self._clusterer = objective, clusterer
        self._training_set, self._iterations = training_set, iterations
        self._cameras, self._tracklets, self._extract = cameras, tracklets, extract
        self._group: Any = None

    def before_train(self) -> None:
        if comm.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=1))

    def before_step(self) -> None:
        if self.trainer.iter % self._iterations == 0:
            self._cluster()
            self.judge()

    def _cluster(self) -> None:
        objective = self.objective
        labels = torch.zeros(objective.size, dtype=torch.int64)
        features = self._features()
        if comm.is_main_process():
            labels = torch.as_tensor(self._fit(features))
        if self._group is not None:
            dist.broadcast(labels, 0, group=self._group)
        objective.cluster_labels.copy_(labels)
        counts = torch.bincount(labels)
        clusters, singletons = int((counts > 1).sum()), int((counts == 1).sum())
        self._log(clusters=clusters, singletons=singletons)
        logger.info("Pseudo labels: %d clusters and %d singletons of %d persons", clusters, singletons, len(labels))

    def _features(self) -> torch.Tensor:
        """Features to cluster, (N, d). Invalid rows are reported with the frames of their persons."""
        features = self.objective.label_features() if self._extract is None else self._extract()
        invalid = torch.from_numpy(invalid_rows(features)).to(features.device)
        finite = features[invalid].isfinite().all(dim=1)
        broken, zero = invalid[~finite].tolist(), invalid[finite].tolist()
        if broken:
            raise TrainingError(
                f"{len(broken)} features of persons are NaN or infinite at iteration {self.trainer.iter}; they are in "
                f"{self._frames_of(broken)}. Lower SOLVER.BASE_LR, or resume from an earlier checkpoint"
            )
        if zero:
            logger.warning(
                "%d of %d features are zero and cannot be clustered: their persons, in %s, become singletons. Either "
                "these images cannot be read, or the network maps them to zero",
                len(zero), len(features), self._frames_of(zero),
            )  # fmt: skip
        return features

    def _frames_of(self, rows: list[int]) -> str:
        frames = sorted({self._training_set.frame_of(row) for row in rows})
        return ", ".join(frames[:5]) + (f" and {len(frames) - 5} more frames" if len(frames) > 5 else "")

    def _fit(self, features: torch.Tensor) -> np.ndarray:
        try:
            return self._clusterer.fit(features, self.objective.image_index, self._cameras, self._tracklets)
        except ValueError as error:
            raise TrainingError(f"the clustering before iteration {self.trainer.iter} failed: {error}") from error

    def judge(self) -> None:
        """Logs precision and recall of the pseudo labels where identities are known. Diagnostics only."""
        persons = self._training_set.person_ids
        if not comm.is_main_process() or not (persons >= 0).any():
            return
        precision, recall = pair_precision_recall(self.objective.cluster_labels.cpu().numpy(), persons)
        self._log(cluster_precision=precision, cluster_recall=recall)
        if not isinstance(self.objective, MultiLabelObjective):
            return
        step = max(1, len(persons) // self.JUDGED_ROWS)
        rows = torch.arange(0, len(persons), step, device=self.objective.image_index.device)
        labels = torch.cat([self.objective.predict_labels(part).cpu() for part in rows.split(64)])
        precision, recall = multi_label_precision_recall(labels.numpy(), rows.cpu().numpy(), persons)
        self._log(multi_label_precision=precision, multi_label_recall=recall)

    def _log(self, **values: float) -> None:
        named = {f"pseudo_labels/{name}": value for name, value in values.items()}
        self.trainer.storage.put_scalars(smoothing_hint=False, **named)

    def state_dict(self) -> dict[str, Any]:
        """State with the clusterer's frozen threshold."""
        return self._clusterer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self._clusterer.load_state_dict(state_dict)


class UpdateBanks(HookBase):
    """Updates the objective's memory with the batch's features after each iteration (SSL: banks, Eq. 5)."""

    def __init__(self, objective: ReIDObjective) -> None:
        self._objective = objective

    def after_step(self) -> None:
        self._objective.apply_pending()


class ShareStatistics(HookBase):
    """Averages the running statistics of plain batch normalization over processes after each iteration.

    Exemplars are normalized with running statistics in training too, and a checkpoint holds the statistics of one
    process: without averaging, a resumed distributed run would differ from an uninterrupted one.
    """

    def __init__(self, model: nn.Module) -> None:
        self._layers = unsynced_norms(model)

    def after_step(self) -> None:
        average_running_statistics(self._layers)


class MetricsWriter(hooks.PeriodicWriter):
    """Detectron2's `PeriodicWriter`, which also writes at every checkpoint so that a resumed run misses no metrics."""

    def __init__(self, writers: list[EventWriter], period: int, checkpoint_period: int) -> None:
        super().__init__(writers, period)
        self._checkpoint_period = checkpoint_period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._checkpoint_period == 0:
            for writer in self._writers:
                writer.write()
        else:
            super().after_step()

    def after_train(self) -> None:
        stopped = self.trainer.iter < self.trainer.max_iter
        for writer in self._writers:
            # After an early stop the printer has nothing left to print, and would divide by zero iterations.
            if not (stopped and isinstance(writer, CommonMetricPrinter)):
                writer.write()
            writer.close()


class ReportSkipped(HookBase):
    """Logs after training how often unreadable images were drawn."""

    def __init__(self, skipped: Callable[[], Iterable[tuple[str, int]]]) -> None:
        self._skipped = skipped

    def after_train(self) -> None:
        skipped = list(self._skipped())
        if skipped:
            draws = sum(count for _, count in skipped)
            names = ", ".join(name for name, _ in skipped[:5])
            logger.warning("Skipped %d unreadable images in %d draws: %s", len(skipped), draws, names)


_SHARED = "objective."


class Teacher:
    """Mean teacher: exponential moving average of the trained network. Not in the paper.

    It averages weights and statistics, fills the banks, and is evaluated.

    Attributes:
        model: averaged network in evaluation mode. It shares the objective of the trained network.
    """

    def __init__(self, model: SSLPersonSearch, momentum: float) -> None:
        """
        Args:
            model: trained network, unwrapped.
            momentum: weight of the OLD value in each update, in [0, 1).
        """
        self._student, self._momentum = model, momentum
        # Share the objective, so that the banks exist once.
        self.model = copy.deepcopy(model, {id(model.objective): model.objective}).eval()
        for name, parameter in self.model.named_parameters():
            if not name.startswith(_SHARED):
                parameter.requires_grad_(False)

    @torch.no_grad()
    def update(self, momentum: float | None = None) -> None:
        """Updates the average with the current network.

        Args:
            momentum: weight of the OLD value; None for that of the constructor, 0 to copy the network.
        """
        weight = self._momentum if momentum is None else momentum
        student = self._student.state_dict()
        for name, value in self.state_dict().items():
            if value.is_floating_point():
                value.lerp_(student[name].to(value), 1 - weight)
            else:
                value.copy_(student[name])

    def state_dict(self) -> dict[str, Any]:
        """Weights and statistics by name, without those of the objective."""
        return {k: v for k, v in self.model.state_dict().items() if not k.startswith(_SHARED)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores `state_dict`."""
        self.model.load_state_dict(state, strict=False)


class FollowWithTeacher(HookBase):
    """Updates the teacher after each iteration, and refills both banks before every clustering but the first."""

    def __init__(self, teacher: Teacher, fill: Callable[[], None], iterations: int) -> None:
        """
        Args:
            teacher: averaged network to update.
            fill: fills the banks from the teacher.
            iterations: number of iterations between clusterings.
        """
        self._teacher, self._fill, self._iterations = teacher, fill, iterations

    def before_step(self) -> None:
        if self.trainer.iter and self.trainer.iter % self._iterations == 0:
            self._fill()

    def after_step(self) -> None:
        self._teacher.update()
