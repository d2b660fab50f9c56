"""Embeddings of RoIs and crops: norm-aware, with the vector norm as person score (NAE), or plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..values import check_value
from .layers import SyncedBatchNorm1d


class PooledFeatures(NamedTuple):
    """Pooled features of RoIs or crops, the input of an embedding.

    Attributes:
        res4: (R, C4) globally pooled res4 features, or (R, S * C4) with S stripes.
        res5: (R, C5) globally pooled res5 features, or (R, S * C5) with S stripes.
    """

    res4: Tensor
    res5: Tensor

    @staticmethod
    def cat(parts: list[PooledFeatures]) -> PooledFeatures:
        """Concatenates features along rows."""
        return PooledFeatures(torch.cat([p.res4 for p in parts]), torch.cat([p.res5 for p in parts]))


class GlobalPooling(nn.Module):
    """Global pooling of feature maps: (R, C, h, w) -> (R, C), or (R, C * S) over S horizontal stripes.

    Stripes keep the vertical order, so head, trunk and legs of an upright person are pooled separately. If a map has
    fewer rows than stripes, neighboring stripes share rows.
    """

    _KINDS: ClassVar[dict[str, Callable[..., Tensor]]] = {
        "max": F.adaptive_max_pool2d,
        "average": F.adaptive_avg_pool2d,
    }

    def __init__(self, kind: str = "max", stripes: int = 1) -> None:
        """
        Args:
            kind: "max" or "average".
            stripes: S.

        Raises:
            ConfigError: `kind` is unknown, or `stripes` is below 1.
        """
        super().__init__()
        check_value("MODEL.REID_HEAD.GLOBAL_POOLING", kind)
        check_value("MODEL.REID_HEAD.STRIPES", stripes)
        self.kind, self.stripes = kind, stripes

    def forward(self, features: Tensor) -> Tensor:
        """Vectors (R, C * S) of feature maps (R, C, h, w)."""
        if self.stripes > 1:
            return self._KINDS[self.kind](features, (self.stripes, 1)).flatten(1)
        return features.amax(dim=(2, 3)) if self.kind == "max" else features.mean(dim=(2, 3))


class Embedding(nn.Module):
    """Base class of embeddings: unit vectors and person logits of pooled features.

    Attributes:
        dim: d, the size of the embedding.
    """

    dim: int

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits.

        In training, batch statistics (and so the running ones) are those of `pooled` alone, whatever `others` holds.

        Args:
            pooled: features of R RoIs.
            others: features of O more RoIs or crops, normalized with the statistics of `pooled`.

        Returns:
            embeddings (R + O, d) of unit length, those of `others` last, and person logits (R,) of `pooled`; both
            float32, also under autocast.
        """
        raise NotImplementedError


class NormAwareEmbedding(Embedding):
    """Norm-aware embedding (NAE): Linear + BN on res4 and res5 each, concatenated, norm and direction separated."""

    def __init__(self, res4_channels: int, res5_channels: int, dim: int) -> None:
        """
        Args:
            res4_channels: C4.
            res5_channels: C5.
            dim: d, size of the embedding, half of it from each input.
        """
        super().__init__()
        self.dim = dim
        self.res4_projector = _projector(res4_channels, dim // 2)
        self.res5_projector = _projector(res5_channels, dim - dim // 2)
        self.rescaler = SyncedBatchNorm1d(1)

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits; see `Embedding.forward`."""
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


class LinearEmbedding(Embedding):
    """Linear embedding of res5 features, with a separate person classifier (OIM).

    The papers classify with a softmax over two logits, which equals the sigmoid of their difference: the one logit
    here.
    """

    def __init__(self, res5_channels: int, dim: int) -> None:
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
        """Embeddings and person logits; see `Embedding.forward`. res4 features are not used."""
        with torch.autocast(pooled.res5.device.type, enabled=False):
            features = pooled.res5.float()
            read = features if others is None else torch.cat([features, others.res5.float()])
            return F.normalize(self.projector(read), dim=1), self.classifier(features).squeeze(1)


class FusedLinearEmbedding(Embedding):
    """Linear embedding of res4 and res5 features, concatenated, with a separate person classifier on res5 (CGPS).

    `NormAwareEmbedding` without batch normalization. For the single person logit see `LinearEmbedding`.
    """

    def __init__(self, res4_channels: int, res5_channels: int, dim: int) -> None:
        """
        Args:
            res4_channels: C4.
            res5_channels: C5.
            dim: d, size of the embedding, half of it from each input.
        """
        super().__init__()
        self.dim = dim
        self.res4_projector = nn.Linear(res4_channels, dim // 2)
        self.res5_projector = nn.Linear(res5_channels, dim - dim // 2)
        self.classifier = nn.Linear(res5_channels, 1)
        # Standard deviations as in CGPS's code.
        for layer, deviation in ((self.res4_projector, 0.001), (self.res5_projector, 0.001), (self.classifier, 0.01)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits; see `Embedding.forward`."""
        read = pooled if others is None else PooledFeatures.cat([pooled, others])
        with torch.autocast(pooled.res5.device.type, enabled=False):
            vectors = torch.cat([self.res4_projector(read.res4.float()), self.res5_projector(read.res5.float())], dim=1)
            return F.normalize(vectors, dim=1), self.classifier(pooled.res5.float()).squeeze(1)


class BNNeckEmbedding(Embedding):
    """Pooled res4 and res5 features with batch normalization ("BN neck") and no projection.

    Training starts from the features of a pretrained backbone, where a projection would start at random. Persons are
    told from background by a separate classifier.
    """

    def __init__(self, res4_channels: int, res5_channels: int) -> None:
        """
        Args:
            res4_channels, res5_channels: C4 and C5, each times the number of stripes; d is their sum.
        """
        super().__init__()
        self.dim = res4_channels + res5_channels
        self.norm = SyncedBatchNorm1d(self.dim)
        self.classifier = nn.Linear(res5_channels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, pooled: PooledFeatures, others: PooledFeatures | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings and person logits; see `Embedding.forward`."""
        parts = [pooled] if others is None else [pooled, others]
        with torch.autocast(pooled.res5.device.type, enabled=False):
            features = torch.cat([torch.cat([part.res4, part.res5], dim=1).float() for part in parts])
            vectors = self.norm(features, counted=pooled.res4.shape[0])
            return F.normalize(vectors, dim=1), self.classifier(pooled.res5.float()).squeeze(1)


def build_embedding(kind: str, res4_channels: int, res5_channels: int, dim: int) -> Embedding:
    """Embedding named by MODEL.REID_HEAD.EMBEDDING.

    Args:
        kind: "norm_aware", "linear", "fused_linear" or "bn_neck".
        res4_channels, res5_channels, dim: see the classes.

    Raises:
        ConfigError: `kind` is unknown, or it does not allow the size `dim`.
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
    """Projection of all parts, concatenated; batch statistics come from the first part alone.

    The linear layer takes the parts one by one, which makes the first part's output independent of the others to the
    last bit.
    """
    linear, norm = projector
    return norm(torch.cat([linear(part.float()) for part in parts]), counted=parts[0].shape[0])
