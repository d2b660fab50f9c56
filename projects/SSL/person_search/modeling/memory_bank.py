"""Memory bank: one feature for each annotated person of the training set (paper Eq. 5)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """N unit features as a buffer, so that a checkpoint holds them. Rows never seen are zero."""

    features: Tensor

    def __init__(self, size: int, dim: int) -> None:
        """
        Args:
            size: N, number of annotated persons.
            dim: d.
        """
        super().__init__()
        self.register_buffer("features", torch.zeros(size, dim))

    @torch.no_grad()
    def fill(self, rows: Tensor, features: Tensor) -> None:
        """Sets rows to features.

        Args:
            rows: (q,) int64.
            features: (q, d).
        """
        self.features[rows] = F.normalize(features.to(self.features), dim=1)

    @torch.no_grad()
    def update(self, rows: Tensor, features: Tensor, momentum: float, renormalize: bool = True) -> None:
        """Moves rows towards features: momentum * new + (1 - momentum) * old (Eq. 5: the weight is the new one's).

        A row named more than once (one frame twice in a batch) moves once, towards the mean of its features, so that
        the result depends neither on their order nor on the process that saw them.

        Args:
            rows: (q,) int64.
            features: (q, d).
            momentum: lambda in [0, 1].
            renormalize: scale the updated rows to unit length.
        """
        unique, inverse = torch.unique(rows, return_inverse=True)
        sums = self.features.new_zeros(len(unique), self.features.shape[1])
        sums.index_add_(0, inverse, features.to(self.features))
        mean = sums / torch.bincount(inverse)[:, None]
        new = momentum * mean + (1 - momentum) * self.features[unique]
        self.features[unique] = F.normalize(new, dim=1) if renormalize else new
