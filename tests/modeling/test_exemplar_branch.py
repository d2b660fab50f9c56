"""The exemplar branch beyond its crops."""

from __future__ import annotations

import torch
from person_search.modeling.exemplar_branch import running_statistics
from torch import nn


def test_exemplars_leave_the_running_statistics_alone():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    before = module[0].running_mean.clone()
    with running_statistics(module):
        module(torch.randn(2, 3, 4, 4) + 5)
    assert torch.equal(module[0].running_mean, before)
    assert [m.training for m in module] == [True, False]
