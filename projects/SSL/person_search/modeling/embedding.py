"""Norm-aware embedding: the direction of a vector identifies a person, its norm tells persons from background (NAE)."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .synced_norm import SyncedBatchNorm1d


class PooledFeatures(NamedTuple):
    """What the embedding reads of each RoI or crop.

    Attributes:
        res4: (R, C4), global maximum of the res4 features.
        res5: (R, C5), global maximum of the res5 features.
    """

    res4: Tensor
    res5: Tensor

    @staticmethod
    def cat(parts: list[PooledFeatures]) -> PooledFeatures:
        """Joins features along their rows."""
        return PooledFeatures(torch.cat([p.res4 for p in parts]), torch.cat([p.res5 for p in parts]))


class NormAwareEmbedding(nn.Module):
    """Projects res4 and res5 features (Linear + BN each), joins them, and splits norm from direction (NAE)."""

    def __init__(self, res4_channels: int, res5_channels: int, dim: int = 256) -> None:
        """
        Args:
            res4_channels: C4.
            res5_channels: C5.
            dim: d, size of the embedding; half comes from each of the two.
        """
        super().__init__()
        self.dim = dim
        self.res4_projector = _projector(res4_channels, dim // 2)
        self.res5_projector = _projector(res5_channels, dim - dim // 2)
        self.rescaler = SyncedBatchNorm1d(1)

    def forward(self, pooled: PooledFeatures) -> tuple[Tensor, Tensor]:
        """
        Args:
            pooled: features of R RoIs or crops. In training R must be 2 or more (batch normalisation).

        Returns:
            embeddings (R, d) of unit length and person logits (R,), both float32 whatever the precision around.
        """
        if len(pooled.res4) == 0:
            return pooled.res4.new_zeros(0, self.dim, dtype=torch.float32), pooled.res4.new_zeros(0, dtype=torch.float32)
        with torch.autocast(pooled.res4.device.type, enabled=False):
            vectors = torch.cat(
                [self.res4_projector(pooled.res4.float()), self.res5_projector(pooled.res5.float())], dim=1
            )
            logits = self.rescaler(vectors.norm(dim=1, keepdim=True)).squeeze(1)
            return F.normalize(vectors, dim=1), logits


def _projector(channels: int, dim: int) -> nn.Sequential:
    linear, norm = nn.Linear(channels, dim), SyncedBatchNorm1d(dim)
    for layer in (linear, norm):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(linear, norm)
