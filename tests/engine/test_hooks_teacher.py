"""The teacher follows the network, fills the banks, is evaluated, and survives a resumption."""

from __future__ import annotations

import pytest
import torch
from person_search.engine import PersonSearchCheckpointer, PersonSearchTrainer
from person_search.errors import ConfigError


@pytest.fixture
def taught(cfg, tmp_path):
    (tmp_path / "run").mkdir()
    cfg.merge_from_list(["SSL.TEACHER.ENABLED", True, "SSL.TEACHER.MOMENTUM", 0.75, "DATASETS.TEST", ()])
    cfg.merge_from_list(["SOLVER.MAX_ITER", 10])  # two epochs: the second one fills the banks anew
    return cfg


def run(cfg, resume=False):
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    trainer.train()
    return trainer


def test_it_is_the_moving_average_and_resumes(taught, tmp_path, monkeypatch):
    seen, filled = [], []
    follow = PersonSearchTrainer.after_step

    def after_step(self):
        follow(self)
        seen.append({k: v.clone() for k, v in self.person_search_model.state_dict().items()})

    fill = PersonSearchTrainer.fill_banks_from
    monkeypatch.setattr(PersonSearchTrainer, "after_step", after_step)
    monkeypatch.setattr(
        PersonSearchTrainer, "fill_banks_from", lambda self, model: filled.append(model) or fill(self, model)
    )
    trainer = run(taught)
    name = "roi_heads.reid_head.res5.0.conv1.weight"
    start = PersonSearchTrainer(taught).person_search_model.state_dict()[name]
    expected = start.double()
    for state in seen:
        expected = 0.75 * expected + 0.25 * state[name].double()
    torch.testing.assert_close(trainer.teacher.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert filled == [trainer.person_search_model, trainer.teacher.model]

    # What inference loads, and what a training resumed after the first refill ends with.
    model = PersonSearchTrainer.build_model(taught)
    PersonSearchCheckpointer(model).load_for_inference(str(tmp_path / "run" / "model_final.pth"))
    final = trainer.teacher.state_dict()
    assert torch.equal(model.state_dict()[name], final[name])
    assert not torch.equal(final[name], trainer.person_search_model.state_dict()[name])
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000008.pth")
    again = run(taught, resume=True)
    for key, value in again.teacher.state_dict().items():
        assert torch.equal(value, final[key]), key


def test_it_needs_memory_banks(taught):
    taught.merge_from_list(["MODEL.OBJECTIVE.NAME", "OIMObjective", "INPUT.IDENTITIES", True])
    taught.SSL.EXEMPLAR.ENABLED = False
    with pytest.raises(ConfigError, match="SSL.TEACHER fills memory banks, and MODEL.OBJECTIVE.NAME OIMObjective"):
        PersonSearchTrainer(taught)
