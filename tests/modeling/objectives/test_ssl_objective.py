"""The objective as a whole: precision, and what it allocates."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from person_search import add_ssl_config
from person_search.modeling import SSLObjective, TrainingEmbeddings


def test_the_multi_label_loss_is_a_sum_over_persons_or_their_mean():
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1)

    bank, persons, rois = unit(12, 16), unit(3, 16), unit(2, 16)
    found = {}
    for reduction in ("sum", "mean"):
        cfg = get_cfg()
        add_ssl_config(cfg)
        cfg.merge_from_list([
            *("MODEL.REID_HEAD.EMBEDDING_DIM", 16, "SSL.MULTI_LABEL_LOSS.REDUCTION", reduction),
            *("SSL.EXEMPLAR.ENABLED", False),
        ])  # fmt: skip
        objective = SSLObjective(cfg)
        objective.allocate(torch.arange(12))
        objective.instance_bank.features.copy_(bank)
        objective.set_threshold(0.2)
        rows = torch.tensor([0, 4, 7])
        batch = TrainingEmbeddings(
            rois=rois,
            roi_instance_index=rows[:2],
            backgrounds=rois[:0],
            persons=persons,
            instance_index=rows,
            image_index=rows,
            exemplars=None,
        )
        found[reduction] = objective(batch)["loss_multi_label_instance"]
        nobody = TrainingEmbeddings(
            rois=rois[:0], roi_instance_index=rows[:0], backgrounds=rois, persons=persons[:0],
            instance_index=rows[:0], image_index=rows[:0],
            exemplars=None,
        )  # fmt: skip
        assert objective(nobody)["loss_multi_label_instance"] == 0
    torch.testing.assert_close(found["sum"], 3 * found["mean"])


def test_mixed_precision_does_not_reach_the_losses(device):
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 16
    objective = SSLObjective(cfg).to(device)
    objective.allocate(torch.arange(60) // 3)
    generator = torch.Generator().manual_seed(0)

    def unit(*shape: int) -> torch.Tensor:
        return F.normalize(torch.randn(*shape, generator=generator), dim=-1).to(device)

    objective.instance_bank.features.copy_(unit(60, 16))
    objective.multi_scale_bank.features.copy_(unit(60, 16))
    with pytest.raises(RuntimeError, match="threshold of the multi-labels is not set"):
        objective.predict_labels(torch.tensor([0]))
    objective.set_threshold(0.2)
    rows = torch.tensor([0, 1, 2, 30], device=device)
    batch = TrainingEmbeddings(
        rois=unit(6, 16), roi_instance_index=torch.tensor([0, 0, 1, 2, 30, 30], device=device), backgrounds=unit(2, 16),
        persons=unit(4, 16), instance_index=rows, image_index=torch.tensor([0, 0, 0, 1], device=device),
        exemplars=unit(4, 4, 16),
    )  # fmt: skip
    expected = objective(batch)
    with torch.autocast(device, dtype=torch.bfloat16):
        mixed = objective(batch)
    assert len(expected) == 5 and expected.keys() == mixed.keys()
    for name, value in expected.items():
        assert mixed[name].dtype == torch.float32 and torch.equal(mixed[name], value), name
