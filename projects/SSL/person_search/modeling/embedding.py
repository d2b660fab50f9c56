"""Embeddings of RoIs and crops: norm-aware, where a vector's norm tells persons from background (NAE), or plain."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from .layers import SyncedBatchNorm1d


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
            return pooled.res4.new_zeros(0, self.dim, dtype=torch.float32), pooled.res4.new_zeros(
                0, dtype=torch.float32
            )
        with torch.autocast(pooled.res4.device.type, enabled=False):
            vectors = torch.cat(
                [self.res4_projector(pooled.res4.float()), self.res5_projector(pooled.res5.float())], dim=1
            )
            logits = self.rescaler(vectors.norm(dim=1, keepdim=True)).squeeze(1)
            return F.normalize(vectors, dim=1), logits


class LinearEmbedding(nn.Module):
    """Projects res5 features linearly; a classifier of its own tells persons from background (OIM; CGPS likewise).

    The papers classify with a softmax over two logits, which is the sigmoid of their difference: the one logit here.
    """

    def __init__(self, res5_channels: int, dim: int = 256) -> None:
        """
        Args:
            res5_channels: C5.
            dim: d, size of the embedding.
        """
        super().__init__()
        self.dim = dim
        self.projector = nn.Linear(res5_channels, dim)
        self.classifier = nn.Linear(res5_channels, 1)
        for layer in (self.projector, self.classifier):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: PooledFeatures) -> tuple[Tensor, Tensor]:
        """
        Args:
            pooled: features of R RoIs or crops; those of res4 are not read.

        Returns:
            embeddings (R, d) of unit length and person logits (R,), both float32 whatever the precision around.
        """
        with torch.autocast(pooled.res5.device.type, enabled=False):
            features = pooled.res5.float()
            return F.normalize(self.projector(features), dim=1), self.classifier(features).squeeze(1)


def build_embedding(
    kind: str, res4_channels: int, res5_channels: int, dim: int
) -> NormAwareEmbedding | LinearEmbedding:
    """An embedding by the name that MODEL.SECOND_HEAD.EMBEDDING gives it.

    Args:
        kind: "norm_aware" or "linear".
        res4_channels, res5_channels, dim: see the classes.

    Raises:
        ConfigError: there is no such embedding.
    """
    if kind == "norm_aware":
        return NormAwareEmbedding(res4_channels, res5_channels, dim)
    if kind == "linear":
        return LinearEmbedding(res5_channels, dim)
    raise ConfigError(f"MODEL.SECOND_HEAD.EMBEDDING is {kind!r}, expected 'norm_aware' or 'linear'")


def _projector(channels: int, dim: int) -> nn.Sequential:
    linear, norm = nn.Linear(channels, dim), SyncedBatchNorm1d(dim)
    for layer in (linear, norm):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(linear, norm)
