"""Training as a whole, on tiny rendered scenes: determinism, resuming, several processes, and what it must not read."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase, SimpleTrainer
from person_search.data import training_set
from person_search.engine import PersonSearchTrainer
from person_search.engine.hooks import ClusterLabels
from person_search.engine.trainer import forget_metrics_from
from person_search.errors import CheckpointError, ConfigError, TrainingError
from person_search.modeling import SSLObjective

from ..processes import start

State = dict[str, torch.Tensor]


def run(cfg: CfgNode, output: Path, resume: bool = False, hooks: Sequence[HookBase] = ()) -> PersonSearchTrainer:
    """Trains in this process."""
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(exist_ok=True, parents=True)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.register_hooks(list(hooks))
    trainer.train()
    return trainer


def state_of(trainer: PersonSearchTrainer) -> State:
    return {k: v.clone() for k, v in trainer.person_search_model.state_dict().items()}


def assert_equal(left: State, right: State) -> None:
    assert left.keys() == right.keys()
    different = [k for k in left if not torch.equal(left[k], right[k])]
    assert not different


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[str, State]:
    """The final state of an unbroken run, trained once for the tests that compare with it."""
    return {}


def reference(cfg: CfgNode, tmp_path: Path, unbroken: dict[str, State]) -> State:
    if "state" not in unbroken:
        unbroken["state"] = state_of(run(cfg, tmp_path / "unbroken"))
    return unbroken["state"]


def test_a_seed_fixes_the_run_and_another_seed_changes_it(cfg, tmp_path, unbroken):
    assert_equal(reference(cfg, tmp_path, unbroken), state_of(run(cfg, tmp_path / "again")))
    cfg.SOLVER.MAX_ITER = 1
    first = state_of(run(cfg, tmp_path / "first"))
    cfg.SEED = 4
    other = state_of(run(cfg, tmp_path / "other"))
    assert not torch.equal(other["backbone.stem.conv1.weight"], first["backbone.stem.conv1.weight"])


def test_worker_processes_change_nothing(cfg, tmp_path, unbroken):
    cfg.DATALOADER.NUM_WORKERS = 1
    assert_equal(reference(cfg, tmp_path, unbroken), state_of(run(cfg, tmp_path / "workers")))


def test_identities_never_reach_training(cfg, tmp_path, unbroken, monkeypatch):
    expected = reference(cfg, tmp_path, unbroken)
    read = training_set.registered_records

    def shuffled(name: str):
        records = read(name)
        persons = [a["person_id"] for r in records for a in r["annotations"]]
        random.Random(0).shuffle(persons)
        for annotation, person in zip((a for r in records for a in r["annotations"]), persons, strict=True):
            annotation["person_id"] = person
        return records

    monkeypatch.setattr(training_set, "registered_records", shuffled)
    trainer = run(cfg, tmp_path / "shuffled")
    assert (trainer.training_set.person_ids >= 0).any()
    assert_equal(expected, state_of(trainer))


class KillLater(HookBase):
    """Kills its process soon after an iteration, in the middle of whatever it does then."""

    def __init__(self, iteration: int) -> None:
        self._iteration = iteration

    def after_step(self) -> None:
        if self.trainer.iter == self._iteration:
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()


def be_killed(cfg: CfgNode, output: Path, iteration: int) -> None:
    run(cfg, output, hooks=[KillLater(iteration)])


@pytest.mark.parametrize("iteration", [2, 11])
def test_kill_9_and_resume_gives_the_unbroken_run(cfg, tmp_path, unbroken, iteration):
    """Killed behind a checkpoint, in the first and in the second epoch, then resumed."""
    expected = reference(cfg, tmp_path, unbroken)
    output = tmp_path / "killed"
    process = start(be_killed, cfg, output, iteration)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (output / "last_checkpoint").exists() and not (output / "model_final.pth").exists()
    trainer = run(cfg, output, resume=True)
    assert 0 < trainer.start_iter < trainer.max_iter
    assert_equal(expected, state_of(trainer))
    iterations = [line.split('"iteration": ')[1].split(",")[0] for line in (output / "metrics.json").open()]
    assert len(iterations) == len(set(iterations))


def test_a_nan_loss_names_the_iteration_and_the_frames(cfg, tmp_path):
    cfg.SOLVER.BASE_LR = 1e30
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.CLIP_GRADIENTS.ENABLED = False
    where = r"at iteration \d+; the last batch was .*\.png, .*\.png\. Lower SOLVER.BASE_LR"
    with pytest.raises(TrainingError, match=rf"^(a loss|proposals) became NaN or infinite .*{where}"):
        run(cfg, tmp_path / "nan")


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (
            "Loss became infinite or NaN at iteration=0!\n"
            "loss_dict = {'loss_a': nan, 'loss_b': np.float64(0.5), 'loss_c': np.float64(-inf), 'loss_d': 1e-05}",
            r"^a loss became NaN or infinite \(loss_a: nan, loss_c: -inf\) at iteration",
        ),
        ("Predicted boxes or scores contain Inf/NaN. Training has diverged.", "^proposals became NaN or infinite at"),
    ],
)
def test_both_ways_to_diverge_are_told_apart(cfg, tmp_path, monkeypatch, told, expected):
    def diverge(self) -> None:
        raise FloatingPointError(told)

    monkeypatch.setattr(SimpleTrainer, "run_step", diverge)
    with pytest.raises(TrainingError, match=expected):
        run(cfg, tmp_path / "nan")


def test_resuming_on_other_boxes_is_refused(cfg, tmp_path, monkeypatch):
    cfg.SOLVER.MAX_ITER = 3
    run(cfg, tmp_path / "moved")
    read = training_set.registered_records

    def moved(name: str):
        records = read(name)
        records[0]["annotations"][0]["bbox"][0] -= 1
        return records

    monkeypatch.setattr(training_set, "registered_records", moved)
    with pytest.raises(CheckpointError, match="was trained on other frames or boxes"):
        run(cfg, tmp_path / "moved", resume=True)


def test_frames_without_persons_train(cfg, tmp_path, monkeypatch):
    read = training_set.registered_records

    def emptied(name: str):
        records = read(name)[:4]
        for record in records[1:]:
            record["annotations"] = []
        return records

    monkeypatch.setattr(training_set, "registered_records", emptied)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    trainer = run(cfg, tmp_path / "empty")
    assert trainer.max_iter == 4
    assert all(v.isfinite().all() for v in state_of(trainer).values())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DATALOADER.ASPECT_RATIO_GROUPING", True),
        ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler"),
        ("SSL.MEMORY.LABEL_SOURCE", "both"),
        ("SOLVER.AMP.ENABLED", True),
        ("DATALOADER.NUM_WORKERS", -1),
        ("INPUT.MIN_SIZE_TRAIN", ()),
        ("INPUT.MIN_SIZE_TRAIN", (144, 0)),
        ("SSL.EXEMPLAR.SCALES", ((0, 16),)),
        ("SSL.EXEMPLAR.SCALES", ((32.5, 16),)),
        ("SSL.EXEMPLAR.SCALES", (32, 16)),
        ("SSL.EXEMPLAR.BACKGROUND", "white"),
        ("SSL.MULTI_LABEL_LOSS.REDUCTION", "max"),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCN"),
        ("MODEL.BACKBONE.NAME", "build_resnet"),
        ("MODEL.ROI_HEADS.NAME", "ROIHeads5"),
        ("SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR"),
        ("SOLVER.BASE_LR", -1.0),
        ("SOLVER.WEIGHT_DECAY", -1.0),
        ("SOLVER.CHECKPOINTS_KEPT", 0),
        ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.0),
        ("SSL.MEMORY.LAMBDA", 1.8),
        ("SSL.THRESHOLD.INITIAL", 7.0),
        ("SSL.THRESHOLD.CALIBRATION", "images"),
        ("SSL.CLUSTER_LOSS.TEMPERATURE", 0.0),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(cfg, key, value):
    if key == "SOLVER.AMP.ENABLED" and torch.cuda.is_available():
        pytest.skip("mixed precision works where there is a GPU")
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=key):
        PersonSearchTrainer(cfg)


def test_a_calibrated_threshold_is_a_quantile(cfg):
    cfg.merge_from_list(["SSL.THRESHOLD.CALIBRATION", "same_image", "SSL.THRESHOLD.INITIAL", 0.95])
    with pytest.raises(ConfigError, match="expected 0 <= INITIAL <= INITIAL \\+ ALPHA <= 1"):
        PersonSearchTrainer(cfg)


def test_a_calibrated_threshold_is_set_once_an_epoch_before_the_labels_are_judged(cfg, tmp_path, monkeypatch):
    cfg.merge_from_list(["SSL.THRESHOLD.CALIBRATION", "same_image", "SOLVER.MAX_ITER", 8, "SOLVER.LOG_PERIOD", 1])
    judged = []
    predict = SSLObjective.predict_labels
    monkeypatch.setattr(ClusterLabels, "judge", lambda self: judged.append(self.objective.threshold))
    seen = []
    monkeypatch.setattr(
        SSLObjective, "predict_labels", lambda self, rows: (seen.append(self.threshold), predict(self, rows))[1]
    )
    trainer = run(cfg, tmp_path / "calibrated")
    epoch = trainer.iterations_per_epoch
    assert judged == [seen[i] for i in range(0, 8, epoch)]
    assert all(seen[i] == judged[i // epoch] for i in range(8))
    assert len(set(judged)) == len(judged)
    hooks = trainer.state_dict()["hooks"]
    assert hooks["ThresholdSchedule"] == {"threshold": seen[-1]}


def test_metrics_of_lost_iterations_are_forgotten(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text('{"iteration": 1, "a": 2}\n{"iteration": 5}\n{"iteration": 6}\n{"itera')
    forget_metrics_from(str(path), 6)
    assert path.read_text() == '{"iteration": 1, "a": 2}\n{"iteration": 5}\n'


VARIANTS = [
    ("SSL.EXEMPLAR.ENABLED", False),
    ("SSL.EXEMPLAR.SHARED_BACKBONE", False),
    ("SSL.EXEMPLAR.SCALES", (), "SSL.EXEMPLAR.MASK_BACKGROUND", False),
    ("SSL.EXEMPLAR.ORIGINAL", False, "SSL.MEMORY.LABEL_SOURCE", "instance"),
    ("SSL.CLUSTER_LOSS.WEIGHT", 0.0, "MODEL.ROI_BOX_HEAD.POOLING", "deformable"),
    ("SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO", 0.1, "SSL.THRESHOLD.ALPHA", 0.0),
    ("MODEL.REID_HEAD.BOX_HEAD_SCORE", False, "MODEL.REID_HEAD.BN_NECK", False),
    ("SSL.THRESHOLD.CALIBRATION", "same_image", "MODEL.REID_HEAD.STRIPES", 4),
]


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: o[0].split(".", 1)[1])
def test_every_variant_trains_and_moves_the_embedding(cfg, tmp_path, options):
    cfg.merge_from_list(["SOLVER.MAX_ITER", 3, *options])
    trainer = run(cfg, tmp_path / "variant")
    final = state_of(trainer)
    assert all(v.isfinite().all() for v in final.values())
    banks = [k for k in final if "bank" in k]
    assert len(banks) == (2 if cfg.SSL.EXEMPLAR.ENABLED else 1)
    assert all(torch.allclose(final[k].norm(dim=1), torch.ones(len(final[k])), atol=1e-4) for k in banks)


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_training_on_a_gpu_resumes_from_its_whole_state(cfg, tmp_path, gpu, mixed_precision):
    cfg.merge_from_list(["MODEL.DEVICE", gpu, "SOLVER.AMP.ENABLED", mixed_precision])
    first = cfg.clone()
    first.SOLVER.MAX_ITER = 12
    broken = run(first, tmp_path / "run")
    assert broken.person_search_model.device.type == gpu
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    resumed = PersonSearchTrainer(cfg)
    resumed.resume_or_load(True)
    assert resumed.start_iter == 12
    assert_equal(state_of(broken), state_of(resumed))
    optimizers = [t._trainer.optimizer.state_dict()["state"] for t in (broken, resumed)]
    assert optimizers[0] and all(
        torch.equal(optimizers[0][key]["momentum_buffer"], optimizers[1][key]["momentum_buffer"])
        for key in optimizers[0]
    )
    if mixed_precision:
        scales = [t._trainer.grad_scaler.state_dict() for t in (broken, resumed)]
        assert scales[0] == scales[1]
    resumed.train()
    assert resumed.iter == 16 and all(v.isfinite().all() for v in state_of(resumed).values())


@pytest.mark.parametrize("options", VARIANTS, ids=lambda o: o[0].split(".", 1)[1])
def test_every_variant_trains_in_mixed_precision(cfg, tmp_path, gpu, options):
    cfg.merge_from_list(["SOLVER.MAX_ITER", 3, "MODEL.DEVICE", gpu, "SOLVER.AMP.ENABLED", True, *options])
    assert all(v.isfinite().all() for v in state_of(run(cfg, tmp_path / "variant")).values())


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_training_learns_to_detect(cfg, tmp_path, device, mixed_precision):
    """Sixty iterations from scratch: the losses of both RPN terms and of the box head fall by far."""
    if mixed_precision and device == "cpu":
        pytest.skip("mixed precision needs a GPU")
    cfg.merge_from_list([
        *("SSL.EXEMPLAR.ENABLED", False, "SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 2e-3),
        *("SOLVER.MAX_ITER", 60, "SOLVER.WARMUP_ITERS", 5, "MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64, 96]]),
        *("SSL.MULTI_LABEL_LOSS.WEIGHT", 0.1, "MODEL.DEVICE", device),
        *("SOLVER.AMP.ENABLED", mixed_precision),
    ])  # fmt: skip
    run(cfg, tmp_path / "learns")
    lines = [json.loads(line) for line in (tmp_path / "learns" / "metrics.json").open()]

    def mean(name: str, part: slice) -> float:
        values = [line[name] for line in lines if name in line][part]
        assert len(values) == 8
        return sum(values) / len(values)

    assert mean("loss_rpn_cls", slice(-8, None)) < 0.6 * mean("loss_rpn_cls", slice(0, 8))
    assert mean("loss_box_head_cls", slice(-8, None)) < mean("loss_box_head_cls", slice(0, 8))


def test_whatever_was_logged_before_a_checkpoint_is_written_with_it(cfg, tmp_path):
    cfg.merge_from_list(["SOLVER.LOG_PERIOD", 1000, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.MAX_ITER", 7])
    run(cfg, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.json").open()]
    # A line for each iteration that logged something itself, and for each checkpoint with the losses.
    assert [line["iteration"] for line in lines if "loss_scale" in line][:2] == [2, 5]
    assert lines[0]["iteration"] == 0
    assert {"pseudo_labels/clusters", "pseudo_labels/cluster_precision"} <= lines[0].keys()
