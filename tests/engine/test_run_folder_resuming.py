"""A resumed training heeds what has changed in its config, or refuses it."""

from __future__ import annotations

import pytest
from person_search.config_files import flatten
from person_search.engine import PersonSearchTrainer
from person_search.engine.run_folder import check_resumed_config
from person_search.errors import CheckpointError, ConfigError


def run(cfg, resume=False, train=True):
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    if train:
        trainer.train()
    return trainer


@pytest.fixture
def begun(cfg, tmp_path):
    """A training of two iterations; the config goes on to four."""
    (tmp_path / "run").mkdir()
    cfg.merge_from_list(["DATASETS.TEST", (), "SOLVER.MAX_ITER", 2])
    cfg.merge_from_list(["SOLVER.WARMUP_ITERS", 0, "SOLVER.WEIGHT_DECAY", 0.01])
    run(cfg)
    cfg.SOLVER.MAX_ITER = 4
    return cfg


def test_rates_and_decays_of_the_config_count(begun, caplog):
    """The advice at a loss that is not finite, a lower SOLVER.BASE_LR, has to work."""
    begun.merge_from_list(["SOLVER.BASE_LR", 1e-4, "SOLVER.WEIGHT_DECAY", 0.02, "SOLVER.MOMENTUM", 0.5])
    trainer = run(begun, resume=True, train=False)
    assert trainer.start_iter == 2
    groups = trainer._trainer.optimizer.param_groups
    assert {g["initial_lr"] for g in groups} == {1e-4}
    # Halfway along the cosine.
    assert [g["lr"] for g in groups] == pytest.approx([0.5e-4] * len(groups))
    assert {g["momentum"] for g in groups} == {0.5} and 0.02 in {g["weight_decay"] for g in groups}
    assert "SOLVER.BASE_LR 0.02 -> 0.0001" in caplog.text and "SOLVER.WEIGHT_DECAY 0.01 -> 0.02" in caplog.text


def test_a_model_of_another_shape_is_refused(begun):
    begun.MODEL.REID_HEAD.EMBEDDING_DIM = 32
    with pytest.raises(CheckpointError, match="resume with the config of its training|training set"):
        run(begun, resume=True)


def test_an_end_that_lies_behind_is_refused(begun):
    begun.SOLVER.MAX_ITER = 1
    with pytest.raises(ConfigError, match="has done 2 iterations, and this config ends after 1: raise"):
        run(begun, resume=True)


def changed(cfg, *options):
    other = cfg.clone()
    other.merge_from_list(list(options))
    return other


@pytest.mark.parametrize(
    "options",
    [("SOLVER.IMS_PER_BATCH", 7), ("SOLVER.OPTIMIZER", "AdamW"), ("SEED", 9), ("SSL.MEMORY.CALIBRATION_FRAMES", 9)],
)
def test_what_cannot_be_applied_is_refused(cfg, options):
    with pytest.raises(CheckpointError, match=f"{options[0]} is {options[1]!r}, but the training began with"):
        check_resumed_config(changed(cfg, *options), cfg.dump())


def test_what_is_applied_is_said_and_what_changes_nothing_is_not(cfg, caplog):
    check_resumed_config(changed(cfg, "OUTPUT_DIR", "elsewhere", "DATALOADER.NUM_WORKERS", 3), cfg.dump())
    check_resumed_config(cfg, cfg.dump())
    check_resumed_config(cfg, None)
    check_resumed_config(cfg, "{no: [yaml")
    assert not caplog.records
    check_resumed_config(changed(cfg, "SSL.SCALE_LOSS.WEIGHT", 0.5, "SOLVER.STEPS", (5, 7)), cfg.dump())
    assert "SSL.SCALE_LOSS.WEIGHT 0.1 -> 0.5" in caplog.text and "SOLVER.STEPS [] -> [5, 7]" in caplog.text
    check_resumed_config(changed(cfg, "MODEL.WEIGHTS", "other.pth"), cfg.dump())
    assert "MODEL.WEIGHTS is ignored" in caplog.text


def test_a_config_survives_its_text(cfg):
    import yaml

    assert flatten(cfg) == flatten(yaml.safe_load(cfg.dump()))
