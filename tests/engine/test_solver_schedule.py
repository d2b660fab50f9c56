"""Schedules in epochs against counting by hand."""

from __future__ import annotations

import pytest
from detectron2.config import CfgNode, get_cfg
from person_search import add_ssl_config
from person_search.engine import iterations_per_epoch, resolve_schedule
from person_search.errors import ConfigError


def config(*options: object) -> CfgNode:
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_list(list(options))
    return cfg


def test_prw_at_the_papers_schedule():
    cfg = resolve_schedule(config("SOLVER.IMS_PER_BATCH", 2), 5704)
    assert iterations_per_epoch(5704, 2) == 2852
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (26 * 2852, (16 * 2852, 22 * 2852))
    assert cfg.SOLVER.CHECKPOINT_PERIOD == 2852


def test_an_epoch_of_an_odd_set_is_rounded_up():
    cfg = resolve_schedule(config("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_EPOCH", 3, "SOLVER.STEP_EPOCHS", (2, 5)), 9)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (9, (6,))


def test_max_iter_takes_over_when_given():
    cfg = resolve_schedule(config("SOLVER.MAX_ITER", 70, "SOLVER.STEPS", (50,), "TEST.EVAL_EPOCHS", 2), 100)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (70, (50,))
    assert cfg.TEST.EVAL_PERIOD == 2 * iterations_per_epoch(100, cfg.SOLVER.IMS_PER_BATCH)


def test_the_given_config_stays_as_it_is():
    cfg = config()
    resolve_schedule(cfg, 100)
    assert cfg.SOLVER.MAX_ITER == 0


@pytest.mark.parametrize("options", [("SOLVER.MAX_EPOCH", 0), ("SOLVER.IMS_PER_BATCH", 0)])
def test_a_schedule_without_length_is_refused(options):
    with pytest.raises(ConfigError, match=options[0]):
        resolve_schedule(config(*options), 10)
