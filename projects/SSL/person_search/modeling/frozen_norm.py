"""Batch normalisation with fixed statistics in one operation of training."""

from __future__ import annotations

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn


class FusedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """Detectron2's `FrozenBatchNorm2d` with the same buffers and the same function.

    Where gradients are needed, Detectron2 derives scale and shift from the four buffers at each call, multiplies and
    adds: seven operations, two of them on whole feature maps. Here scale and shift are kept as long as the buffers stay
    what they are, and one operation applies both.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self._sources: tuple[tuple[Tensor, int], ...] = ()
        self._affine: tuple[Tensor, Tensor] | None = None

    @classmethod
    def like(cls, norm: FrozenBatchNorm2d) -> FusedFrozenBatchNorm2d:
        """One that takes over the buffers of another."""
        fused = cls(norm.num_features, norm.eps)
        for name, buffer in norm.named_buffers():
            setattr(fused, name, buffer)
        return fused

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) of the same type."""
        if not x.requires_grad:
            return super().forward(x)
        scale, shift = self._scale_and_shift(x.dtype)
        return torch.addcmul(shift, x, scale)

    def _scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        # Each change of a tensor in place raises its version.
        known = len(self._sources) == len(buffers) and all(
            old is new and version == new._version for (old, version), new in zip(self._sources, buffers, strict=True)
        )
        if not known or self._affine is None or self._affine[0].dtype != dtype:
            with torch.no_grad():
                scale = self.weight * (self.running_var + self.eps).rsqrt()
                shift = self.bias - self.running_mean * scale
                self._affine = tuple(value.reshape(1, -1, 1, 1).to(dtype) for value in (scale, shift))
            self._sources = tuple((buffer, buffer._version) for buffer in buffers)
        return self._affine


def fuse_frozen_norms(model: nn.Module) -> None:
    """Replaces each `FrozenBatchNorm2d` of a model by a `FusedFrozenBatchNorm2d`. Its state dict stays the same."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is FrozenBatchNorm2d:
                setattr(parent, name, FusedFrozenBatchNorm2d.like(child))
