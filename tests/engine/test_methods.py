"""The methods that SSL is compared with: each trains, resumes exactly, and sees identities only where it may."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from detectron2.config import CfgNode
from person_search.data import training_set
from person_search.engine import PersonSearchTrainer
from person_search.errors import CheckpointError, ConfigError, DatasetError
from person_search.modeling import TrainingEmbeddings
from torch import Tensor

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "SSL" / "configs" / "methods"
SUPERVISED = ("oim", "nae", "seqnet")
METHODS = SUPERVISED
ITERATIONS = 6


@dataclass
class Run:
    """A training with every batch of embeddings that its objective saw, and the losses that it gave."""

    trainer: PersonSearchTrainer
    batches: list[TrainingEmbeddings]
    losses: list[dict[str, Tensor]]

    def state(self) -> dict[str, Tensor]:
        return self.trainer.person_search_model.state_dict()


@pytest.fixture
def method(cfg: CfgNode) -> Callable[[str], CfgNode]:
    """Gives the config of a method on the tiny scenes: its file's own keys on top, as for any other data set."""

    def build(name: str) -> CfgNode:
        keys = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        assert keys.pop("_BASE_") == f"published/{name}.yaml"
        cfg.merge_from_other_cfg(CfgNode(keys))
        cfg.merge_from_list([
            *("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.CHECKPOINT_PERIOD", 4, "DATASETS.TEST", (), "OIM.QUEUE_SIZE", 7),
            *("SSL.EXEMPLAR.SCALES", ((24, 12),)),
        ])  # fmt: skip
        return cfg

    return build


def train(cfg: CfgNode, output: Path, resume: bool = False) -> Run:
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(output)
    output.mkdir(exist_ok=True, parents=True)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    run = Run(trainer, [], [])

    def record(_, inputs: tuple[TrainingEmbeddings], losses: dict[str, Tensor]) -> None:
        run.batches.append(inputs[0])
        run.losses.append({name: value.detach() for name, value in losses.items()})

    trainer.person_search_model.objective.register_forward_hook(record)
    trainer.train()
    return run


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """One training of each method, which several tests look at."""
    return {}


@pytest.fixture
def trained(method, runs: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    def get(name: str) -> Run:
        if name not in runs:
            runs[name] = train(method(name), tmp_path_factory.mktemp(name))
        return runs[name]

    return get


def shuffle_identities(monkeypatch: pytest.MonkeyPatch) -> None:
    read = training_set.registered_records

    def shuffled(name: str):
        records = read(name)
        annotations = [a for r in records for a in r["annotations"]]
        persons = [a["person_id"] for a in annotations]
        random.Random(0).shuffle(persons)
        for annotation, person in zip(annotations, persons, strict=True):
            annotation["person_id"] = person
        return records

    monkeypatch.setattr(training_set, "registered_records", shuffled)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(trained, name):
    run = trained(name)
    assert len(run.losses) == ITERATIONS and all(v.isfinite().all() for v in run.state().values())
    weights = {n: p for n, p in run.trainer.person_search_model.named_parameters() if p.requires_grad}
    assert [n for n, p in weights.items() if p.grad is None] == []
    embedding = [n for n in weights if n.startswith("roi_heads.embedding.")]
    assert embedding and all(float(weights[n].grad.abs().sum()) > 0 for n in embedding if n.endswith("weight"))


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_unbroken_one(trained, method, tmp_path, name):
    unbroken, output = trained(name), tmp_path / "resumed"
    output.mkdir()
    shutil.copy(Path(unbroken.trainer.cfg.OUTPUT_DIR) / "model_0000003.pth", output)
    (output / "last_checkpoint").write_text("model_0000003.pth")
    resumed = train(method(name), output, resume=True)
    assert len(resumed.losses) == ITERATIONS - 4
    expected, state = unbroken.state(), resumed.state()
    assert expected.keys() == state.keys()
    assert [k for k in state if not torch.equal(state[k], expected[k])] == []


@pytest.mark.parametrize("name", METHODS)
def test_shuffled_identities_change_supervised_training_alone(trained, method, tmp_path, monkeypatch, name):
    expected = trained(name).state()
    shuffle_identities(monkeypatch)
    run = train(method(name), tmp_path / "shuffled")
    assert (run.trainer.training_set.person_ids >= 0).any()
    different = [k for k, v in run.state().items() if not torch.equal(v, expected[k])]
    assert bool(different) == (name in SUPERVISED)


# ------------------------------------------------------------------ losses by brute force


@pytest.mark.parametrize("name", SUPERVISED)
def test_oim_losses_and_memory_are_those_of_the_definition(trained, name):
    run = trained(name)
    objective, training = run.trainer.person_search_model.objective, run.trainer.training_set
    persons = sorted(set(training.person_ids.tolist()) - {-1})
    assert len(objective.lookup_table) == len(persons)
    table, queue, slot = torch.zeros(len(persons), objective.dim), torch.zeros(7, objective.dim), 0
    for batch, losses in zip(run.batches, run.losses, strict=True):
        identities = [int(training.person_ids[row]) for row in batch.roi_rows]
        scores = batch.rois.detach() @ torch.cat([table, queue]).T * 30
        terms = [
            -F.log_softmax(score, dim=0)[persons.index(person)]
            for score, person in zip(scores, identities, strict=True)
            if person >= 0
        ]
        assert float(losses["loss_oim"]) == pytest.approx(float(sum(terms) / max(len(terms), 1)), rel=1e-4, abs=1e-5)
        for feature, person in zip(batch.rois.detach(), identities, strict=True):
            if person >= 0:
                moved = table[persons.index(person)] + feature
                table[persons.index(person)] = moved / moved.norm()
            else:
                queue[slot], slot = feature, (slot + 1) % 7
    torch.testing.assert_close(objective.lookup_table, table, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(objective.queue, queue)
    assert int(objective.queue_position) == slot and (queue != 0).any()


# ------------------------------------------------------------------ learning


@pytest.mark.parametrize("name", ["oim"])
def test_a_short_training_lowers_the_losses(method, tmp_path, name):
    """Thirty iterations of a shallow network from nothing."""
    cfg = method(name)
    cfg.merge_from_list([
        *("MODEL.BACKBONE.NAME", "build_slim_resnet_backbone", "MODEL.RESNETS.DEPTH", 10),
        *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 2e-3, "SOLVER.MAX_ITER", 30),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64, 96]]),
    ])  # fmt: skip
    run = train(cfg, tmp_path / "learns")
    lines = [json.loads(line) for line in (tmp_path / "learns" / "metrics.json").open()]
    for loss in ("loss_rpn_cls", *run.losses[0]):
        values = [line[loss] for line in lines if loss in line]
        assert sum(values[-6:]) < 0.8 * sum(values[:6]), loss


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("oim", ("INPUT.IDENTITIES", False), "OIMObjective is supervised: .* INPUT.IDENTITIES True"),
        ("oim", ("MODEL.OBJECTIVE.NAME", "SSLObjective"), "SSLObjective is weakly supervised and must not read identities"),
        ("oim", ("MODEL.OBJECTIVE.NAME", "OIM"), "MODEL.OBJECTIVE.NAME is 'OIM', expected one of .*OIMObjective"),
        ("oim", ("SSL.EXEMPLAR.ENABLED", True), "OIMObjective makes nothing of exemplars: set SSL.EXEMPLAR.ENABLED False"),
        ("oim", ("OIM.TEMPERATURE", 0.0), "OIM.TEMPERATURE is 0.0"),
        ("oim", ("OIM.QUEUE_SIZE", -1), "OIM.QUEUE_SIZE is -1"),
    ],
)
def test_contradictions_are_refused(method, name, options, message):
    cfg = method(name)
    cfg.merge_from_list(list(options))
    with pytest.raises(ConfigError, match=message):
        PersonSearchTrainer(cfg)


def test_supervised_training_without_any_identity_is_refused(method, monkeypatch):
    read = training_set.registered_records

    def anonymous(name: str):
        records = read(name)
        for annotation in (a for r in records for a in r["annotations"]):
            annotation["person_id"] = -1
        return records

    monkeypatch.setattr(training_set, "registered_records", anonymous)
    with pytest.raises(DatasetError, match="no person has an identity"):
        PersonSearchTrainer(method("oim"))


def test_resuming_on_other_identities_is_refused(trained, method, tmp_path, monkeypatch):
    output = Path(trained("oim").trainer.cfg.OUTPUT_DIR)
    shuffle_identities(monkeypatch)
    with pytest.raises(CheckpointError, match="trained on other frames, boxes or identities"):
        train(method("oim"), output, resume=True)


def test_a_queue_of_another_size_is_refused_on_resuming(trained, method):
    output = Path(trained("oim").trainer.cfg.OUTPUT_DIR)
    cfg = method("oim")
    cfg.OIM.QUEUE_SIZE = 9
    with pytest.raises(CheckpointError, match=r"objective.queue has 7 rows.* 9 slots in OIM.QUEUE_SIZE"):
        train(cfg, output, resume=True)
