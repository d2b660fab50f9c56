"""Trainer: Detectron2's `DefaultTrainer` with memory banks, pseudo labels and person search evaluation."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import re
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, hooks
from detectron2.evaluation import DatasetEvaluator, print_csv_format
from detectron2.utils import comm
from detectron2.utils.events import CommonMetricPrinter, EventWriter, JSONWriter, TensorboardXWriter
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..data import register_custom
from ..data.loader import SequentialLoader, build_bank_loader, build_test_loader, build_train_loader
from ..data.mapper import PersonSearchMapper
from ..data.registration import registered_records
from ..data.training_set import TrainingSet, load_training_set
from ..errors import CheckpointError, ConfigError, TrainingError
from ..evaluation import PersonSearchEvaluator
from ..io import is_disk_full, replacing
from ..labels import DynamicThreshold
from ..modeling import BankObjective, MultiLabelObjective, SSLPersonSearch
from ..weights import PersonSearchCheckpointer
from ..weights.checkpoint import AVERAGED_MODEL
from .bank_filling import calibrate_embedding, calibration_frames, extract_features, fill_banks
from .checks import (
    build_clusterer,
    check_config,
    check_workers,
    cluster_cameras,
    cluster_tracklets,
    training_identities,
    visible_device,
)
from .hooks import (
    ClusterLabels,
    EvaluateUntrained,
    FillBanks,
    FollowWithTeacher,
    MetricsWriter,
    ReportSkipped,
    SeedIterations,
    ShareStatistics,
    Teacher,
    ThresholdSchedule,
    UpdateBanks,
    seed_generators,
)
from .processes import FinishOnSignal
from .run_folder import begin_run, check_resumed_config
from .solver import OptimizerSettings, build_optimizer, iterations_per_epoch, resolve_schedule
from .testing import (
    backbone_features,
    check_expected_results,
    evaluate_dataset,
    feature_store,
    table_of_metrics,
    verify_expected_results,
)

logger = logging.getLogger(__name__)


class PersonSearchTrainer(DefaultTrainer):
    """Trainer of `SSLPersonSearch`, used like Detectron2's `DefaultTrainer`.

    No set-up is needed: the trainer creates OUTPUT_DIR with config.yaml and, unless the program has set up logging,
    logs as `train_net.py` does.

    Unlike `DefaultTrainer`, it reads the data before it builds the model, since schedules are given in epochs and
    memory banks have a row per annotated person. Hooks fill, cluster and update the banks. With SEED >= 0, a run on
    the CPU is determined by its config, and a killed run resumes to the same result.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: config with the project's keys.

        Raises:
            ConfigError: a key has an invalid value, or OUTPUT_DIR cannot be written.
            DatasetError: the training set cannot be read.
        """
        # DefaultTrainer's constructor is skipped: it builds the model before the data and cannot wrap models on CPUs.
        super(DefaultTrainer, self).__init__()
        check_config(cfg)
        check_expected_results(cfg)
        register_custom(cfg.DATASETS.CUSTOM)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.DEVICE = visible_device(cfg.MODEL.DEVICE)
        begin_run(cfg)
        self.training_set = _training_set(cfg)
        self.training_set.check_images()
        cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        check_workers(cfg, True, len(self.training_set) / len(self.training_set.records))
        self.cfg = cfg = resolve_schedule(cfg, len(self.training_set.records))
        self.iterations_per_epoch = iterations_per_epoch(len(self.training_set.records), cfg.SOLVER.IMS_PER_BATCH)
        self.seed = cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed()
        self.start_iter = 0

        seed_generators(self.seed)
        model = self.build_model(cfg)
        identities = training_identities(cfg, self.training_set)
        model.objective.allocate(torch.from_numpy(self.training_set.image_index), identities)
        self.person_search_model = model
        self.teacher = Teacher(model, cfg.SSL.TEACHER.MOMENTUM) if cfg.SSL.TEACHER.ENABLED else None
        optimizer = self.build_optimizer(cfg, model)
        self._optimizer_settings = OptimizerSettings(optimizer)
        wrapped = _distribute(model)
        trainer_type = AMPTrainer if cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        loader = self.build_train_loader(cfg, self.training_set, seed=self.seed, start_iteration=self.start_iter)
        self._trainer = trainer_type(wrapped, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = PersonSearchCheckpointer(
            wrapped,
            cfg.OUTPUT_DIR,
            cfg,
            functools.partial(check_resumed_config, cfg),
            trainer=weakref.proxy(self),
            **({} if self.teacher is None else {AVERAGED_MODEL: self.teacher}),
        )
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks(self.build_hooks())
        logger.info(
            "%d frames with %d persons; %d iterations, %d an epoch",
            len(self.training_set.records), len(self.training_set), self.max_iter, self.iterations_per_epoch,
        )  # fmt: skip

    # ------------------------------------------------------------------ building

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """Optimizer described by SOLVER; see `solver.build_optimizer`."""
        return build_optimizer(cfg, model)

    @classmethod
    def build_train_loader(
        cls, cfg: CfgNode, training_set: TrainingSet | None = None, *, seed: int = 0, start_iteration: int = 0
    ) -> Any:
        """Loader of training batches.

        Args:
            cfg: config with the project's keys.
            training_set: training set; None for that of DATASETS.TRAIN.
            seed: seed of the order of the frames.
            start_iteration: first iteration to load.
        """
        loader = build_train_loader(
            (training_set or _training_set(cfg)).records,
            PersonSearchMapper(cfg, True),
            batch_size=cfg.SOLVER.IMS_PER_BATCH,
            seed=seed,
            start_iteration=start_iteration,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            timeout=cfg.DATALOADER.TIMEOUT,
        )
        return LastBatch(loader)

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str, records: list[dict[str, Any]] | None = None) -> Any:
        """Loader of the frames of a test set, with the boxes that the evaluation needs embeddings of.

        Args:
            cfg: config with the project's keys.
            dataset_name: registered test set.
            records: subset of its records; None for all.
        """
        mapper = PersonSearchMapper(cfg, False, given_boxes=PersonSearchEvaluator.given_boxes(cfg, dataset_name))
        records = registered_records(dataset_name) if records is None else records
        check_workers(cfg, False)
        workers = cfg.DATALOADER.NUM_WORKERS
        return build_test_loader(records, mapper, num_workers=workers, timeout=cfg.DATALOADER.TIMEOUT)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> PersonSearchEvaluator:
        """Evaluator of a test set, which writes to OUTPUT_DIR/inference/<name>."""
        folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
        control = None
        if cfg.TEST.PERSON_SEARCH.CONTROL_WEIGHTS:
            control = functools.partial(backbone_features, cfg, dataset_name)
        return PersonSearchEvaluator(cfg, dataset_name, folder, control)

    @classmethod
    def test(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        evaluators: Sequence[DatasetEvaluator] | None = None,
        keep_features: bool = False,
    ) -> dict[str, Any]:
        """Metrics on DATASETS.TEST; the counterpart of `DefaultTrainer.test`.

        Args:
            cfg: config with the project's keys.
            model: network with its weights.
            evaluators: evaluators to use in Detectron2's own loop instead of those of `build_evaluator`.
            keep_features: whether to use the feature store of TEST.PERSON_SEARCH.FEATURE_STORE. Leave it off for
                evaluations during training, which would each store features of short-lived weights.

        Returns:
            metrics by task, or by dataset and task if there are several datasets.
        """
        if evaluators is not None:
            return super().test(cfg, model, evaluators)
        results: dict[str, Any] = OrderedDict()
        for name in cfg.DATASETS.TEST:
            store = feature_store(cfg, model, name) if keep_features else None
            load = functools.partial(cls.build_test_loader, cfg, name)
            results[name] = evaluate_dataset(model, name, cls.build_evaluator(cfg, name), load, store)
            if comm.is_main_process():
                logger.info("%s", table_of_metrics(name, results[name]))
                print_csv_format(results[name])  # for programs that read log.txt
        return results if len(results) != 1 else next(iter(results.values()))

    def build_hooks(self) -> list[hooks.HookBase | None]:
        """Hooks in order: the project's first, so that checkpoints contain the updated memory, then Detectron2's."""
        cfg, objective = self.cfg, self.person_search_model.objective

        def evaluate() -> dict[str, Any]:
            self._last_eval_results = self.test(cfg, self.model if self.teacher is None else self.teacher.model)
            return self._last_eval_results

        main = comm.is_main_process()
        return [
            SeedIterations(),
            EvaluateUntrained(evaluate) if cfg.TEST.EVAL_BEFORE_TRAINING else None,
            *self._build_label_hooks(),
            UpdateBanks(objective),
            ShareStatistics(self.person_search_model),
            ReportSkipped(lambda: self._trainer.data_loader.skipped.items()),
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            hooks.PeriodicCheckpointer(
                self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD, max_to_keep=cfg.SOLVER.CHECKPOINTS_KEPT
            ) if main else None,
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, evaluate),
        ]  # fmt: skip

    def _build_label_hooks(self) -> list[hooks.HookBase]:
        """Hooks of the objective: banks, cluster labels and multi-label threshold, as far as it has them."""
        cfg, objective = self.cfg, self.person_search_model.objective
        if not isinstance(objective, BankObjective):
            return []
        cluster = ClusterLabels(
            objective,
            build_clusterer(cfg),
            self.training_set,
            self.iterations_per_epoch * cfg.SSL.CLUSTERING.PERIOD,
            cameras=cluster_cameras(cfg, self.training_set),
            tracklets=cluster_tracklets(cfg, self.training_set),
            extract=self._extract_features if cfg.SSL.CLUSTERING.FEATURES == "extract" else None,
        )
        built: list[hooks.HookBase] = [FillBanks(self._fill_banks)]
        if self.teacher is not None:
            fill = functools.partial(self.fill_banks_from, self.teacher.model)
            built.append(FollowWithTeacher(self.teacher, fill, self.iterations_per_epoch * cfg.SSL.CLUSTERING.PERIOD))
        if isinstance(objective, MultiLabelObjective):
            keys = cfg.SSL.THRESHOLD
            threshold = DynamicThreshold(initial=keys.INITIAL, alpha=keys.ALPHA, beta=keys.BETA)
            built.append(
                ThresholdSchedule(
                    objective,
                    threshold,
                    iterations_per_epoch=self.iterations_per_epoch,
                    calibrated=keys.CALIBRATION == "same_image",
                )
            )
        return [*built, cluster]

    def build_writers(self) -> list[EventWriter]:
        """Writers to the console, metrics.json and TensorBoard, which continue at the start of a resumed run."""
        folder = self.cfg.OUTPUT_DIR
        return [
            CommonMetricPrinter(self.max_iter),
            JSONWriter(os.path.join(folder, "metrics.json")),
            TensorboardXWriter(folder, purge_step=self.start_iter),
        ]

    def bank_loader(self, records: list[dict[str, Any]] | None = None) -> SequentialLoader:
        """This process's batches of the training set, or of some of its records: ground truth, no augmentation."""
        mapper = PersonSearchMapper(self.cfg, False, with_instances=True)
        keys = self.cfg.DATALOADER
        records = self.training_set.records if records is None else records
        return build_bank_loader(records, mapper, num_workers=keys.NUM_WORKERS, timeout=keys.TIMEOUT)

    def _fill_banks(self) -> None:
        frames = calibration_frames(self.training_set, self.cfg.SSL.MEMORY.CALIBRATION_FRAMES)
        if frames:
            calibrate_embedding(self.person_search_model, self.bank_loader(frames))
        if self.teacher is not None:
            self.teacher.update(momentum=0)
        self.fill_banks_from(self.person_search_model)

    def fill_banks_from(self, model: SSLPersonSearch) -> None:
        """Fills both banks with features of a network: the trained one or its teacher."""
        fill_banks(model, self.bank_loader())

    def _extract_features(self) -> torch.Tensor:
        model = self.person_search_model if self.teacher is None else self.teacher.model
        return model.objective.source_features(*extract_features(model, self.bank_loader()))

    # ------------------------------------------------------------------ running

    def resume_or_load(self, resume: bool = True) -> None:
        """Resumes from the last checkpoint in OUTPUT_DIR if `resume` is set and there is one, else loads MODEL.WEIGHTS.

        Raises:
            CheckpointError: the file is missing, damaged or belongs to another training set.
            ConfigError: the run to resume is longer than this config's schedule.
        """
        resumed = resume and self.checkpointer.has_checkpoint()
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resumed:
            self.start_iter = self.iter + 1
            if self.start_iter > self.max_iter:
                raise ConfigError(
                    f"the training to resume has done {self.start_iter} iterations, and this config ends after "
                    f"{self.max_iter}: raise SOLVER.MAX_ITER or SOLVER.MAX_EPOCH"
                )
            self._trainer.reset_data_loader(
                lambda: self.build_train_loader(
                    self.cfg, self.training_set, seed=self.seed, start_iteration=self.start_iter
                )
            )

    def train(self) -> Any:
        """Trains, then evaluates.

        Returns:
            metrics of the final evaluation; None without a test set.

        Raises:
            TrainingError: a loss became NaN or infinite, or a file cannot be written.
            ExpectationError: a metric differs from TEST.EXPECTED_RESULTS.
            Interrupted: Ctrl-C or SIGTERM stopped the training; a checkpoint to resume from has been saved.
        """
        if comm.is_main_process():
            forget_metrics_from(os.path.join(self.cfg.OUTPUT_DIR, "metrics.json"), self.start_iter)
            solver = self.cfg.SOLVER
            self.register_hooks([MetricsWriter(self.build_writers(), solver.LOG_PERIOD, solver.CHECKPOINT_PERIOD)])
        self.register_hooks([FinishOnSignal()])
        try:
            # DefaultTrainer.train is skipped: it checks TEST.EXPECTED_RESULTS by assertion and exits the process.
            super(DefaultTrainer, self).train(self.start_iter, self.max_iter)
        except OSError as error:
            if not is_disk_full(error):
                raise
            raise TrainingError(
                f"{error.filename or self.cfg.OUTPUT_DIR} cannot be written ({error.strerror}): free space, then "
                "continue with --resume"
            ) from error
        results = getattr(self, "_last_eval_results", None)
        if results is not None and comm.is_main_process():
            verify_expected_results(self.cfg, results)
        return results

    def run_step(self) -> None:
        """Runs one iteration.

        Raises:
            TrainingError: a loss or a proposal is NaN or infinite; the message names the frames of the batch.
        """
        try:
            super().run_step()
        except FloatingPointError as error:
            files = ", ".join(self._trainer.data_loader.files)
            # Detectron2 raises the same error for losses and, before there are any, for proposals.
            losses = str(error).partition("loss_dict = ")[2]
            what = (
                f"a loss became NaN or infinite ({_not_finite(losses)})"
                if losses
                else "proposals became NaN or infinite"
            )
            raise TrainingError(
                f"{what} at iteration {self.iter}; the last batch was {files}. "
                "Lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS"
            ) from error

    def state_dict(self) -> dict[str, Any]:
        """State of the trainer without the model."""
        return {**super().state_dict(), "seed": self.seed, "training_set": self._fingerprint()}

    def _fingerprint(self) -> str:
        return self.training_set.fingerprint(with_identities=self.cfg.INPUT.IDENTITIES)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores `state_dict`.

        Raises:
            CheckpointError: it belongs to a training on other frames, boxes or, if they are used, identities.
        """
        if state_dict["training_set"] != self._fingerprint():
            what = "frames, boxes or identities" if self.cfg.INPUT.IDENTITIES else "frames or boxes"
            raise CheckpointError(
                f"the checkpoint in {self.cfg.OUTPUT_DIR} was trained on other {what} than "
                f"{', '.join(self.cfg.DATASETS.TRAIN)} holds now: restore them, or start over without --resume"
            )
        self.seed = state_dict["seed"]
        super().load_state_dict(state_dict)
        self._optimizer_settings.apply(self._trainer.optimizer, self.scheduler)


class LastBatch:
    """Loader wrapper that remembers the image files of the last batch.

    Attributes:
        files: image files of the last batch.
    """

    def __init__(self, loader: Any) -> None:
        self._loader = loader
        self.files: list[str] = []

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        for batch in self._loader:
            self.files = [x["file_name"] for x in batch]
            yield batch

    @property
    def skipped(self) -> dict[str, int]:
        """Number of draws of each unreadable image file."""
        return self._loader.skipped


def _not_finite(losses: str) -> str:
    """Names and values of the non-finite losses in Detectron2's message."""
    values = re.findall(r"'(\w+)': (?:[\w.]+\()?([-+\w.]+)", losses)
    return ", ".join(f"{name}: {value}" for name, value in values if not math.isfinite(float(value)))


def forget_metrics_from(path: str, iteration: int) -> None:
    """Drops the lines of a metrics.json from an iteration on, which a resumed run writes again."""
    if not os.path.isfile(path):
        return
    kept = []
    with open(path) as f:
        for line in f:
            try:
                keep = json.loads(line).get("iteration", -1) < iteration
            except ValueError:
                keep = False  # incomplete line of a killed run
            kept += [line] if keep else []
    with replacing(path, error=TrainingError) as temporary:
        temporary.write_text("".join(kept))


def _training_set(cfg: CfgNode) -> TrainingSet:
    return load_training_set(cfg.DATASETS.TRAIN, cfg.INPUT.PERSON_MASKS, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)


def _distribute(model: nn.Module) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    devices = [comm.get_local_rank()] if next(model.parameters()).is_cuda else None
    # Buffers are not broadcast: batch statistics are per process, and banks are kept equal by gathering their updates.
    return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)
