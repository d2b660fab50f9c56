"""Training in two processes that talk through gloo."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from person_search.engine import PersonSearchTrainer
from person_search.engine.bank_filling import calibrate_embedding
from person_search.modeling import NormAwareEmbedding, PooledFeatures
from person_search.modeling.meta_arch import PooledPersons
from person_search.modeling.objectives.ssl_objective import persons_of_all_processes

from ..processes import launch_two

# Pooled features of eight persons, in frames of one to three.
PERSONS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).abs()


def run(config: str, resume: bool = False) -> PersonSearchTrainer:
    from detectron2.config import get_cfg
    from person_search import add_ssl_config

    torch.set_num_threads(1)
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(config)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def train_supervised(config: str, output: str) -> None:
    """Keeps what the objective remembers, and what this process alone has seen."""
    trainer = run(config)
    objective = trainer.person_search_model.objective
    kept = {"state": objective.state_dict(), "seen": trainer._trainer.data_loader.files}
    torch.save(kept, f"{output}.{comm.get_rank()}")


def train(config: str, output: str) -> None:
    trainer = run(config)
    model = trainer.person_search_model
    objective = trainer.person_search_model.objective
    torch.save(
        {
            "instance": objective.instance_bank.features,
            "multi_scale": objective.multi_scale_bank.features,
            "labels": objective.cluster_labels,
            "threshold": objective.threshold,
            "conv": model.backbone.stem.conv1.weight,
            "embedding_mean": model.roi_heads.reid_head.embedding.res5_projector[1].running_mean,
        },
        f"{output}.{comm.get_world_size()}.{comm.get_rank()}",
    )


@pytest.fixture
def config_file(shallow_cfg: CfgNode, tmp_path: Path) -> str:
    os.environ["DETECTRON2_DATASETS"] = str(tmp_path)
    shallow_cfg.merge_from_list([
        *("DATASETS.TRAIN", ("synthetic_tiny_train",), "DATASETS.TEST", ()),
        *("INPUT.MIN_SIZE_TRAIN", (144,), "INPUT.MAX_SIZE_TRAIN", 256, "SOLVER.MAX_ITER", 8, "SOLVER.BASE_LR", 1e-5),
        # Statistics over both processes everywhere: those of one image and of two are far apart in so narrow a network.
        *("MODEL.RESNETS.NORM", "naiveSyncBN", "SSL.MEMORY.CALIBRATION_FRAMES", 100),
        *("SSL.CLUSTERING.K1", 8, "SSL.CLUSTERING.K2", 3, "SSL.CLUSTERING.MIN_SAMPLES", 2),
        *("OUTPUT_DIR", str(tmp_path), "SEED", 3, "SOLVER.IMS_PER_BATCH", 2),
    ])  # fmt: skip
    (tmp_path / "config.yaml").write_text(shallow_cfg.dump())
    return str(tmp_path / "config.yaml")


def test_two_processes_keep_equal_banks_close_to_those_of_one(config_file, tmp_path):
    output = str(tmp_path / "state")
    train(config_file, output)
    launch_two(train, config_file, output)
    one, first, second = (torch.load(f"{output}.{name}") for name in ("1.0", "2.0", "2.1"))
    for key in ("instance", "multi_scale", "labels", "conv", "embedding_mean"):
        assert torch.equal(first[key], second[key]), key
    assert first["threshold"] == second["threshold"] == one["threshold"]
    # Same frames in the same iterations; backbone statistics and the sampling of RoIs differ between one and two.
    for key in ("instance", "multi_scale"):
        similarity = (first[key] * one[key]).sum(dim=1)
        unrelated = (first[key] * one[key].roll(1, dims=0)).sum(dim=1)
        assert similarity.mean() > 0.95
        # And closer by far than to another person: at this stage all persons still look alike.
        assert 1 - similarity.mean() < 0.5 * (1 - unrelated.mean())


def test_two_processes_keep_equal_tables_and_queues(shallow_cfg, config_file, tmp_path):
    shallow_cfg.merge_from_list([
        *("MODEL.OBJECTIVE.NAME", "OIMObjective", "INPUT.IDENTITIES", True, "SSL.EXEMPLAR.ENABLED", False),
        *("OIM.QUEUE_SIZE", 40, "SOLVER.MAX_ITER", 3),
    ])  # fmt: skip
    Path(config_file).write_text(shallow_cfg.dump())
    output = str(tmp_path / "oim")
    launch_two(train_supervised, config_file, output)
    first, second = (torch.load(f"{output}.{rank}") for rank in (0, 1))
    assert first["seen"] != second["seen"]
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]) and value.any(), key


def calibrate(output: str) -> None:
    """Calibrates a lone embedding with frames of which the two processes have different numbers."""
    pooled = [PERSONS[:1], PERSONS[1:4], PERSONS[4:6]] if comm.get_rank() == 0 else [PERSONS[6:]]
    embedding = NormAwareEmbedding(3, 3, 2)
    for name, value in embedding.state_dict().items():
        if name.endswith("0.weight"):
            value.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
    model = SimpleNamespace(
        roi_heads=SimpleNamespace(reid_head=SimpleNamespace(embedding=embedding)), training=True, device="cpu",
        eval=lambda: None,
        train=lambda mode: None, pool_persons=lambda batch: PooledPersons(None, batch[0]["pooled"], None),
    )  # fmt: skip
    calibrate_embedding(model, [[{"pooled": PooledFeatures(p, p.square())}] for p in pooled])
    torch.save(embedding.state_dict(), f"{output}.{comm.get_rank()}")


def test_moments_of_the_calibration_are_those_of_all_rows_of_all_processes(tmp_path):
    output = str(tmp_path / "calibrated")
    launch_two(calibrate, output)
    direction = torch.tensor([1.0, -2.0, 0.5])
    vectors = []
    for rank in (0, 1):
        state = torch.load(f"{output}.{rank}")
        vectors.clear()
        for level, features in (("res4", PERSONS), ("res5", PERSONS.square())):
            projected = features @ direction
            mean, variance = state[f"{level}_projector.1.running_mean"], state[f"{level}_projector.1.running_var"]
            torch.testing.assert_close(mean, projected.mean()[None])
            torch.testing.assert_close(variance, projected.var()[None])
            scale = state[f"{level}_projector.1.weight"] / (projected.var(correction=0) + 1e-5).sqrt()
            vectors.append((projected - projected.mean()) * scale)
        norms = torch.stack(vectors, dim=1).norm(dim=1)
        torch.testing.assert_close(state["rescaler.running_mean"], norms.mean()[None])
        torch.testing.assert_close(state["rescaler.running_var"], norms.var()[None])


def count_persons(output: str) -> None:
    """Counts the persons of a batch of which this process has some."""
    rows = torch.arange(1 + 2 * comm.get_rank())
    torch.save(persons_of_all_processes(rows), f"{output}.{comm.get_rank()}")


def test_the_mean_of_the_multi_label_loss_is_over_the_persons_of_all_processes(tmp_path):
    output = str(tmp_path / "persons")
    launch_two(count_persons, output)
    assert [float(torch.load(f"{output}.{rank}")) for rank in (0, 1)] == [4, 4]


def train_from(config: str, output: str, resume: bool) -> None:
    trainer = run(config, resume)
    torch.save(trainer.person_search_model.state_dict(), f"{output}.{comm.get_rank()}")


def test_two_processes_resume_to_the_unbroken_run_with_plain_batch_normalization(shallow_cfg, config_file, tmp_path):
    shallow_cfg.merge_from_list([
        *("MODEL.RESNETS.NORM", "BN", "SSL.MEMORY.CALIBRATION_FRAMES", 2, "SOLVER.BASE_LR", 0.02),
        *("SOLVER.MAX_ITER", 5, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.CHECKPOINT_EPOCHS", 0),
    ])  # fmt: skip
    Path(config_file).write_text(shallow_cfg.dump())
    launch_two(train_from, config_file, str(tmp_path / "unbroken"), False)
    for name in ("model_final.pth", "last_checkpoint"):
        (tmp_path / name).unlink()
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    launch_two(train_from, config_file, str(tmp_path / "resumed"), True)
    for rank in (0, 1):
        unbroken, resumed = (torch.load(tmp_path / f"{name}.{rank}") for name in ("unbroken", "resumed"))
        counters = [k for k in unbroken if k.endswith("num_batches_tracked")]  # of each process, and never read again
        assert not [k for k in unbroken if k not in counters and not torch.equal(unbroken[k], resumed[k])]
    first, second = (torch.load(tmp_path / f"unbroken.{rank}") for rank in (0, 1))
    assert not [k for k in first if k not in counters and not torch.equal(first[k], second[k])]
