"""Batch normalisation over the batches of all processes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` of (R, C) whose training statistics are those of all processes together.

    With one or two images a process, statistics of a process alone would make the features of a person depend on how
    the batch is spread. Processes may have different R. Works on CPUs too; with one process it is `BatchNorm1d`.

    Attributes:
        synced: False lets each process use its own rows, so that not all have to call it equally often.
    """

    synced = True

    def forward(self, features: Tensor) -> Tensor:
        """(R, C) -> (R, C)."""
        if comm.get_world_size() == 1 or not self.training or not self.synced:
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


def unsynced_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a module whose running statistics each process collects on its own."""
    synced = (SyncedBatchNorm1d, NaiveSyncBatchNorm, nn.SyncBatchNorm)
    return [
        m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not isinstance(m, synced)
    ]


@torch.no_grad()
def average_running_statistics(layers: Iterable[_BatchNorm], weight: float = 1.0) -> None:
    """Gives running statistics the same values on all processes: their mean over the processes.

    Args:
        layers: the same ones on every process.
        weight: how much this process counts; where all weigh 0, everything stays as it is.
    """
    statistics = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    if comm.get_world_size() == 1 or not statistics:
        return
    packed = torch.cat([*(value.flatten() for value in statistics), statistics[0].new_ones(1)]) * weight
    dist.all_reduce(packed)
    total = packed[-1]
    if total == 0:
        return
    for value, mean in zip(statistics, (packed[:-1] / total).split([v.numel() for v in statistics]), strict=True):
        value.copy_(mean.view_as(value))
