"""Embeddings of RoIs and crops: norm-aware, where a vector's norm tells persons from background (NAE), or plain."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..values import check_value
from .layers import SyncedBatchNorm1d


class PooledFeatures(NamedTuple):
    """Pooled vectors of RoIs or crops, which the embedding reads.

    Attributes:
        res4: (R, C4), globally pooled res4 features; with S stripes (R, S * C4).
        res5: (R, C5), globally pooled res5 features; with S stripes (R, S * C5).
    """

    res4: Tensor
    res5: Tensor

    @staticmethod
    def cat(parts: list[PooledFeatures]) -> PooledFeatures:
        """Joins features along their rows."""
        return PooledFeatures(torch.cat([p.res4 for p in parts]), torch.cat([p.res5 for p in parts]))


class GlobalPooling(nn.Module):
    """Pooling of feature maps into vectors, (R, C, h, w) -> (R, C), or over S horizontal stripes into (R, C * S).

    Stripes keep the vertical order: head, trunk and legs of an upright person are pooled apart. Of a map with fewer
    rows than stripes, neighbouring stripes share rows.
    """

    _KINDS: ClassVar = {"max": F.adaptive_max_pool2d, "average": F.adaptive_avg_pool2d}

    def __init__(self, kind: str = "max", stripes: int = 1) -> None:
        """
        Args:
            kind: "max" or "average".
            stripes: S.

        Raises:
            ConfigError: another kind, or no stripe.
        """
        super().__init__()
        check_value("MODEL.REID_HEAD.GLOBAL_POOLING", kind)
        check_value("MODEL.REID_HEAD.STRIPES", stripes)
        self.kind, self.stripes = kind, stripes

    def forward(self, features: Tensor) -> Tensor:
        """(R, C, h, w) -> (R, C * S)."""
        if self.stripes > 1:
            return self._KINDS[self.kind](features, (self.stripes, 1)).flatten(1)
        return features.amax(dim=(2, 3)) if self.kind == "max" else features.mean(dim=(2, 3))


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

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits.

        In training the batch statistics, and so the running ones, are those of `pooled` alone, whatever `others` holds.

        Args:
            pooled: features of R RoIs.
            others: features of O more RoIs or crops, normalised with the statistics of `pooled`.

        Returns:
            embeddings (R + O, d) of unit length, those of `others` last, and person logits (R,) of `pooled`; both
            float32 whatever the precision around.
        """
        parts = [pooled] if others is None else [pooled, others]
        with torch.autocast(pooled.res4.device.type, enabled=False):
            vectors = torch.cat(
                [
                    _project(self.res4_projector, [part.res4 for part in parts]),
                    _project(self.res5_projector, [part.res5 for part in parts]),
                ],
                dim=1,
            )
            logits = self.rescaler(vectors[: pooled.res4.shape[0]].norm(dim=1, keepdim=True)).squeeze(1)
            return F.normalize(vectors, dim=1), logits


class LinearEmbedding(nn.Module):
    """Projects res5 features linearly; a classifier of its own tells persons from background (OIM).

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

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits; see `NormAwareEmbedding.forward`. Features of res4 are not read."""
        with torch.autocast(pooled.res5.device.type, enabled=False):
            features = pooled.res5.float()
            read = features if others is None else torch.cat([features, others.res5.float()])
            return F.normalize(self.projector(read), dim=1), self.classifier(features).squeeze(1)


class FusedLinearEmbedding(nn.Module):
    """Projects res4 and res5 features linearly and joins them; a classifier of its own on res5 (CGPS).

    It is `NormAwareEmbedding` without batch normalisation. For the one person logit see `LinearEmbedding`.
    """

    def __init__(self, res4_channels: int, res5_channels: int, dim: int = 256) -> None:
        """
        Args:
            res4_channels: C4.
            res5_channels: C5.
            dim: d, size of the embedding; half comes from each of the two.
        """
        super().__init__()
        self.dim = dim
        self.res4_projector = nn.Linear(res4_channels, dim // 2)
        self.res5_projector = nn.Linear(res5_channels, dim - dim // 2)
        self.classifier = nn.Linear(res5_channels, 1)
        # The deviations of CGPS's code.
        for layer, deviation in ((self.res4_projector, 0.001), (self.res5_projector, 0.001), (self.classifier, 0.01)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits; see `NormAwareEmbedding.forward`."""
        read = pooled if others is None else PooledFeatures.cat([pooled, others])
        with torch.autocast(pooled.res5.device.type, enabled=False):
            vectors = torch.cat([self.res4_projector(read.res4.float()), self.res5_projector(read.res5.float())], dim=1)
            return F.normalize(vectors, dim=1), self.classifier(pooled.res5.float()).squeeze(1)


class BNNeckEmbedding(nn.Module):
    """Pooled res4 and res5 features as they are, each channel normalised over the batch ("BN neck"); no projection.

    It starts from what a pretrained backbone tells of a person, where a projection starts at random. A classifier of
    its own tells persons from background.
    """

    def __init__(self, res4_channels: int, res5_channels: int) -> None:
        """
        Args:
            res4_channels, res5_channels: C4 and C5 (times the number of stripes); their sum is the size d of the
                embedding.
        """
        super().__init__()
        self.dim = res4_channels + res5_channels
        self.norm = SyncedBatchNorm1d(self.dim)
        self.classifier = nn.Linear(res5_channels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits; see `NormAwareEmbedding.forward`."""
        parts = [pooled] if others is None else [pooled, others]
        with torch.autocast(pooled.res5.device.type, enabled=False):
            features = torch.cat([torch.cat([part.res4, part.res5], dim=1).float() for part in parts])
            vectors = self.norm(features, counted=pooled.res4.shape[0])
            return F.normalize(vectors, dim=1), self.classifier(pooled.res5.float()).squeeze(1)


def build_embedding(
    kind: str, res4_channels: int, res5_channels: int, dim: int
) -> NormAwareEmbedding | LinearEmbedding | FusedLinearEmbedding | BNNeckEmbedding:
    """An embedding by the name that MODEL.REID_HEAD.EMBEDDING gives it.

    Args:
        kind: "norm_aware", "linear", "fused_linear" or "bn_neck".
        res4_channels, res5_channels, dim: see the classes.

    Raises:
        ConfigError: there is no such embedding, or it cannot have that size.
    """
    check_value("MODEL.REID_HEAD.EMBEDDING", kind)
    if kind == "norm_aware":
        return NormAwareEmbedding(res4_channels, res5_channels, dim)
    if kind == "linear":
        return LinearEmbedding(res5_channels, dim)
    if kind == "fused_linear":
        return FusedLinearEmbedding(res4_channels, res5_channels, dim)
    if dim != res4_channels + res5_channels:
        raise ConfigError(
            f"MODEL.REID_HEAD.EMBEDDING_DIM is {dim}, but the embedding 'bn_neck' has all of the pooled channels: set "
            f"it to {res4_channels + res5_channels}"
        )
    return BNNeckEmbedding(res4_channels, res5_channels)


def _projector(channels: int, dim: int) -> nn.Sequential:
    linear, norm = nn.Linear(channels, dim), SyncedBatchNorm1d(dim)
    for layer in (linear, norm):
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(linear, norm)


def _project(projector: nn.Sequential, parts: list[Tensor]) -> Tensor:
    """Rows of all parts after the projector's linear layer and its norm, which counts the first part alone.

    The parts pass the linear layer one by one: what the first one becomes does not depend on the others to the bit.
    """
    linear, norm = projector
    return norm(torch.cat([linear(part.float()) for part in parts]), counted=parts[0].shape[0])
