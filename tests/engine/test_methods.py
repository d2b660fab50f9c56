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
from person_search.engine import PersonSearchCheckpointer, PersonSearchTrainer
from person_search.errors import CheckpointError, ConfigError, DatasetError
from person_search.modeling import ReIDObjective, TrainingEmbeddings
from torch import Tensor

CONFIGS = Path(__file__).resolve().parents[2] / "projects" / "SSL" / "configs" / "methods"
SUPERVISED = ("oim", "nae", "seqnet")
METHODS = (*SUPERVISED, "cgps", "rsiamnet")
ITERATIONS = 4


@dataclass
class Run:
    """A training with every batch that its objective saw, what it remembered then, and the losses that it gave."""

    trainer: PersonSearchTrainer
    batches: list[TrainingEmbeddings]
    memories: list[dict[str, Tensor]]
    losses: list[dict[str, Tensor]]

    def state(self) -> dict[str, Tensor]:
        return self.trainer.person_search_model.state_dict()


@pytest.fixture
def method(cfg: CfgNode) -> Callable[[str], CfgNode]:
    """Gives the config of a method on the tiny scenes: its file's own keys on top, as for any other data set."""

    def build(name: str) -> CfgNode:
        keys = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        keys.pop("_BASE_")
        cfg.merge_from_other_cfg(CfgNode(keys))
        cfg.merge_from_list([
            *("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.CHECKPOINT_PERIOD", 3, "DATASETS.TEST", (), "OIM.QUEUE_SIZE", 7),
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
    run = Run(trainer, [], [], [])

    def record(objective: ReIDObjective, inputs: tuple[TrainingEmbeddings], losses: dict[str, Tensor]) -> None:
        run.batches.append(inputs[0])
        run.memories.append({name: value.clone() for name, value in objective.state_dict().items()})
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
    embedding = [n for n in weights if n.startswith("roi_heads.reid_head.embedding.")]
    assert embedding and all(float(weights[n].grad.abs().sum()) > 0 for n in embedding if n.endswith("weight"))
    # Evaluation needs the weights alone.
    model = PersonSearchTrainer.build_model(run.trainer.cfg)
    PersonSearchCheckpointer(model).load_for_inference(f"{run.trainer.cfg.OUTPUT_DIR}/model_final.pth")
    assert model.objective.size == 0
    assert torch.equal(dict(model.named_parameters())[embedding[0]], weights[embedding[0]])


@pytest.mark.parametrize("name", METHODS)
def test_a_resumed_run_is_the_unbroken_one(trained, method, tmp_path, name):
    unbroken, output = trained(name), tmp_path / "resumed"
    output.mkdir()
    shutil.copy(Path(unbroken.trainer.cfg.OUTPUT_DIR) / "model_0000002.pth", output)
    (output / "last_checkpoint").write_text("model_0000002.pth")
    resumed = train(method(name), output, resume=True)
    assert len(resumed.losses) == ITERATIONS - 3
    expected, state = unbroken.state(), resumed.state()
    assert expected.keys() == state.keys()
    assert [k for k in state if not torch.equal(state[k], expected[k])] == []


@pytest.mark.parametrize("name", ["oim", "cgps", "rsiamnet"])
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
        identities = [int(training.person_ids[row]) for row in batch.roi_instance_index]
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


def cluster_loss(
    features: Tensor, rows: Tensor, bank: Tensor, labels: Tensor, mass: float, epsilon: float = 0.0
) -> float:
    """Mean negative log-softmax over clusters at 0.05, of the negatives the hardest up to a share of their mass."""
    members = [bank[labels == c] for c in range(int(labels.max()) + 1)]
    terms = []
    for feature, row in zip(features.double(), rows.tolist(), strict=True):
        scores = torch.stack([(m.double() @ feature).mean() for m in members]) / 0.05
        own = int(labels[row])
        negatives = torch.cat([scores[:own], scores[own + 1 :]]).exp().sort(descending=True).values
        last = int(((negatives.cumsum(0) / negatives.sum()) - mass).abs().argmin())
        share = scores[own].exp() / (scores[own].exp() + negatives[: last + 1].sum() + epsilon)
        terms.append(-float(torch.log(share + epsilon)))
    return sum(terms) / len(terms)


def test_cgps_losses_are_those_of_the_definition(trained):
    run = trained("cgps")
    assert run.losses[0].keys() == {"loss_cluster_instance", "loss_context"}
    weight = run.trainer.cfg.SSL.CLUSTER_LOSS.WEIGHT
    assert 0 < weight < 1, "so that a weight left out or applied twice is seen"
    for i in (0, ITERATIONS - 1):
        batch, memory, losses = run.batches[i], run.memories[i], run.losses[i]
        labels, rois = memory["cluster_labels"], batch.rois.detach()
        assert batch.persons is None
        expected = weight * cluster_loss(
            rois, batch.roi_instance_index, memory["instance_bank.features"], labels, 0.6, 1e-6
        )
        assert float(losses["loss_cluster_instance"]) == pytest.approx(expected, rel=1e-3)
        to_persons, to_background = torch.cdist(rois, rois), torch.cdist(rois, batch.backgrounds.detach())
        hinges, background = [], []
        for own, persons, ground in zip(labels[batch.roi_instance_index], to_persons, to_background, strict=True):
            same = labels[batch.roi_instance_index] == own
            hinges.append(max(0.0, float(0.3 + persons[same].max() - persons[~same].min())))
            background.append(max(0.0, float(0.3 + persons.max() - ground.min())))
        expected = sum(hinges) / len(hinges) + 0.25 * sum(background) / len(background)
        assert float(losses["loss_context"]) == pytest.approx(expected, rel=1e-3)


def test_cgps_moves_a_row_by_each_positive_roi_in_turn(trained):
    run = trained("cgps")
    bank = run.memories[0]["instance_bank.features"].clone()
    for batch in run.batches:
        for feature, row in zip(batch.rois.detach(), batch.roi_instance_index.tolist(), strict=True):
            moved = 0.2 * bank[row] + 0.8 * feature
            bank[row] = moved / moved.norm()
    found = run.trainer.person_search_model.objective.instance_bank.features
    torch.testing.assert_close(found, bank, rtol=1e-4, atol=1e-5)
    assert (bank != run.memories[0]["instance_bank.features"]).any()


def test_r_siamnet_losses_are_those_of_the_definition(trained):
    run = trained("rsiamnet")
    weight = run.trainer.cfg.SSL.CLUSTER_LOSS.WEIGHT
    for i in (0, ITERATIONS - 1):
        batch, memory, losses = run.batches[i], run.memories[i], run.losses[i]
        labels, persons, crops = memory["cluster_labels"], batch.persons.detach(), batch.exemplars.detach()[:, 0]
        assert len(losses) == 4 and batch.exemplars.shape[1] == 1
        pairs = {
            "instance": (batch.rois.detach(), batch.roi_instance_index),
            "multi_scale": (crops, batch.instance_index),
        }
        for bank, (features, rows) in pairs.items():
            expected = weight * cluster_loss(features, rows, memory[f"{bank}_bank.features"], labels, 1.0)
            assert float(losses[f"loss_cluster_{bank}"]) == pytest.approx(expected, rel=1e-3)
        cosine = float((persons * crops).sum(dim=1).mean())
        assert float(losses["loss_region"]) == pytest.approx(1 - cosine, rel=1e-4)
        divergence = 0.0
        for j in range(len(persons)):
            others = [k for k in range(len(persons)) if k != j]
            p, q = (F.softmax(f[others].double() @ f[j].double() / 0.05, dim=0) for f in (persons, crops))
            divergence += float((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 2
        assert float(losses["loss_similarity"]) == pytest.approx(divergence / len(persons), rel=1e-3)


# ------------------------------------------------------------------ learning


@pytest.mark.parametrize("name", ["oim", "cgps", "rsiamnet"])
def test_a_short_training_lowers_the_losses(method, tmp_path, monkeypatch, name):
    """Twenty-four iterations of a shallow network from scratch, on four frames whose cluster labels stay."""
    read = training_set.registered_records
    monkeypatch.setattr(training_set, "registered_records", lambda name: read(name)[:4])
    cfg = method(name)
    cfg.merge_from_list([
        *("MODEL.BACKBONE.NAME", "build_slim_resnet_backbone", "MODEL.RESNETS.DEPTH", 10),
        *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 2e-3, "SOLVER.MAX_ITER", 24),
        *("MODEL.ANCHOR_GENERATOR.SIZES", [[16, 32, 64, 96]], "SSL.CLUSTERING.PERIOD", 100),
    ])  # fmt: skip
    run = train(cfg, tmp_path / "learns")
    lines = [json.loads(line) for line in (tmp_path / "learns" / "metrics.json").open()]
    for loss in ("loss_rpn_cls", *run.losses[0]):
        values = [line[loss] for line in lines if loss in line]
        assert sum(values[-5:]) < 0.8 * sum(values[:5]), loss


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("oim", ("INPUT.IDENTITIES", False), "OIMObjective is supervised: .* INPUT.IDENTITIES True"),
        ("oim", ("MODEL.OBJECTIVE.NAME", "SSLObjective"), "SSLObjective is weakly supervised and must not read"),
        ("oim", ("MODEL.OBJECTIVE.NAME", "OIM"), "MODEL.OBJECTIVE.NAME is 'OIM', expected one of .*OIMObjective"),
        ("oim", ("SSL.EXEMPLAR.ENABLED", True), "OIMObjective does not use exemplars: .*ENABLED False"),
        ("cgps", ("INPUT.IDENTITIES", True), "CGPSObjective is weakly supervised and must not read identities"),
        ("rsiamnet", ("SSL.EXEMPLAR.ENABLED", False), "RSiamNetObjective needs exemplars: .*ENABLED True"),
        ("rsiamnet", ("RSIAMNET.SIMILARITY_TEMPERATURE", 0.0), "RSIAMNET.SIMILARITY_TEMPERATURE is 0.0"),
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
