"""Batch normalisation over the batches of all processes."""

from __future__ import annotations

import torch
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` of (R, C) whose training statistics are those of all processes together.

    With one or two images a process, statistics of a process alone would make the features of a person depend on how
    the batch is spread. Processes may have different R. Works on CPUs too; with one process it is `BatchNorm1d`.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        if comm.get_world_size() == 1 or not self.training:
            return super().forward(features)
        count = features.new_full((1,), float(len(features)))
        sums = torch.cat([count, features.sum(dim=0), features.square().sum(dim=0)])
        total, first, second = differentiable_all_reduce(sums).split([1, self.num_features, self.num_features])
        mean = first / total
        variance = (second / total - mean.square()).clamp(min=0)
        self._track(mean.detach(), variance.detach(), total.detach())
        scale = (variance + self.eps).rsqrt()
        normalised = (features - mean) * scale
        return normalised * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * total / (total - 1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)
