"""Layers: normalization in one operation or over all processes, box regression, RoI pooling, whole-pixel anchors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, NaiveSyncBatchNorm, ShapeSpec
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors in its order, corners rounded to whole pixels, as SeqNet was trained with."""

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """Anchors (len(sizes) * len(aspect_ratios), 4), xyxy in whole pixels around (0, 0), grouped by size."""
        return super().generate_cell_anchors(sizes, aspect_ratios).round()


@runtime_checkable
class FoldsBatchNorms(Protocol):
    """A module that folds its own batch normalization."""

    def fold_batch_norms(self) -> int:
        """Folds in place; returns the number of layers folded."""


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Folds batch normalization into the preceding convolutions, in place. For inference only.

    Applies to Detectron2's convolutions whose `norm` has fixed statistics (`FrozenBatchNorm2d`, or `BatchNorm2d` in
    evaluation mode) and to modules with a `fold_batch_norms` method. Outputs are unchanged up to rounding. Names in the
    state dict change, so the model can no longer be trained or load a checkpoint.

    Args:
        model: a model with its weights loaded.

    Returns:
        The number of layers folded.
    """
    folded = 0
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            fold_batch_norm(conv, norm)
            conv.register_module("norm", None)
            folded += 1
    return folded + sum(m.fold_batch_norms() for m in model.modules() if isinstance(m, FoldsBatchNorms))


def fold_batch_norm(conv: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> None:
    """Folds a batch normalization into the convolution before it, in place.

    Raises:
        ValueError: the normalization keeps no running statistics.
    """
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise ValueError("batch normalization without running statistics cannot be folded")
    conv.weight, conv.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
    )


class FusedFrozenBatchNorm2d(FrozenBatchNorm2d):
    """Drop-in for Detectron2's `FrozenBatchNorm2d`: same buffers, same function, fewer operations in training.

    When gradients are needed, Detectron2 derives scale and shift from the four buffers on every call: seven operations,
    two of them on whole feature maps. Here scale and shift are cached until a buffer changes, and one operation applies
    both.
    """

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__(num_features, eps)
        self._sources: tuple[tuple[Tensor, int], ...] = ()
        self._affine: tuple[Tensor, Tensor] | None = None

    @classmethod
    def like(cls, norm: FrozenBatchNorm2d) -> FusedFrozenBatchNorm2d:
        """A fused layer that shares the buffers of `norm`."""
        fused = cls(norm.num_features, norm.eps)
        for name, buffer in norm.named_buffers():
            setattr(fused, name, buffer)
        return fused

    def forward(self, x: Tensor) -> Tensor:
        """Normalized features: (B, C, H, W) -> (B, C, H, W), dtype kept."""
        if not x.requires_grad:
            return super().forward(x)
        scale, shift = self._scale_and_shift(x.dtype)
        return torch.addcmul(shift, x, scale)

    def _scale_and_shift(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        # Every in-place change of a tensor increments its version.
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
    """Replaces every `FrozenBatchNorm2d` of a model with a `FusedFrozenBatchNorm2d`; the state dict is unchanged."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is FrozenBatchNorm2d:
                setattr(parent, name, FusedFrozenBatchNorm2d.like(child))


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` on (R, C) with training statistics computed over all processes.

    With one or two images per process, per-process statistics would make a person's features depend on how the batch
    is split. R may differ between processes. Runs on CPUs too; with one process it equals `BatchNorm1d`.

    In training, rows can be normalized without contributing to the statistics; all other rows then get the same values
    as if these rows were absent.

    Attributes:
        synced: False uses the statistics of each process alone, so processes need not call the layer equally often.
    """

    synced = True
    # Statistics are always tracked, which `BatchNorm1d` leaves open.
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    @contextmanager
    def averaging(self) -> Iterator[None]:
        """Context in which the layer resets its statistics and averages those of this process's batches."""
        momentum, training = self.momentum, self.training
        self.reset_running_stats()
        self.momentum, self.synced = None, False
        self.train()
        try:
            yield
        finally:
            self.momentum, self.synced = momentum, True
            self.train(training)

    def forward(self, features: Tensor, counted: int | None = None) -> Tensor:
        """Normalized features (R, C).

        Args:
            features: (R, C).
            counted: number of leading rows that the training statistics are computed from; None for all.
        """
        if not self.training:
            return super().forward(features)
        own = features if counted is None else features[:counted]
        rest = features[len(own) :]
        if comm.get_world_size() == 1 or not self.synced:
            if len(own) < 2:
                # A single row has no variance: a batch without proposals and with one person.
                return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            if len(rest) == 0:
                return super().forward(own)
            variance, mean = torch.var_mean(own, dim=0, correction=0)
            return torch.cat([super().forward(own), self._normalized(rest, mean, variance)])
        count = own.new_full((1,), float(len(own)))
        sums = torch.cat([count, own.sum(dim=0), own.square().sum(dim=0)])
        total, first, second = differentiable_all_reduce(sums).split([1, self.num_features, self.num_features])
        mean = first / total.clamp(min=1)
        variance = (second / total.clamp(min=1) - mean.square()).clamp(min=0)
        self._track(mean.detach(), variance.detach(), total.detach())
        return self._normalized(features, mean, variance)

    def _normalized(self, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (features - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor, total: Tensor) -> None:
        self.num_batches_tracked += 1
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        unbiased = variance * total / (total - 1).clamp(min=1)
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(unbiased, momentum)


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Context in which batch normalization uses its running statistics without updating them.

    Crops have other statistics than scenes: mixed into the running statistics of a shared backbone, they would suit
    neither at test time.
    """
    changed = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    for layer in changed:
        layer.eval()
    try:
        yield
    finally:
        for layer in changed:
            layer.train()


class BoxRegressor(nn.Module):
    """Class-agnostic box regression, optionally followed by batch normalization (SeqNet's BN neck)."""

    def __init__(self, channels: int, bn_neck: bool) -> None:
        """
        Args:
            channels: C of the features.
            bn_neck: whether batch normalization follows.
        """
        super().__init__()
        self.linear = nn.Linear(channels, 4)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        self.norm: nn.Module = nn.Identity()
        if bn_neck:
            norm = SyncedBatchNorm1d(4)
            nn.init.normal_(norm.weight, std=0.01)
            self.norm = norm

    def forward(self, features: Tensor) -> Tensor:
        """Box deltas (R, 4) float32 of features (R, C)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.norm(self.linear(features.float()))


def unsynced_norms(module: nn.Module) -> list[_BatchNorm]:
    """Batch normalization layers of a module whose running statistics are collected per process."""
    synced = (SyncedBatchNorm1d, NaiveSyncBatchNorm, nn.SyncBatchNorm)
    return [
        m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not isinstance(m, synced)
    ]


@torch.no_grad()
def average_running_statistics(layers: Iterable[_BatchNorm]) -> None:
    """Replaces the running statistics of layers by their mean over all processes, which must pass the same layers."""
    both = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    statistics = [value for value in both if value is not None]
    if comm.get_world_size() == 1 or not statistics:
        return
    packed = torch.cat([value.flatten() for value in statistics])
    dist.all_reduce(packed)
    means = (packed / comm.get_world_size()).split([value.numel() for value in statistics])
    for value, mean in zip(statistics, means, strict=True):
        value.copy_(mean.view_as(value))


class DeformableRoIPooler(nn.Module):
    """Deformable RoI pooling: RoIAlign with bins shifted by offsets predicted from the RoI's own features.

    Plain RoIAlign features predict one (dx, dy) per bin in units of `gamma` times the RoI size; each bin is the mean of
    2 x 2 bilinear samples at its shifted position. Offsets start at 0, where the layer equals RoIAlign with
    `sampling_ratio` 2. No compiled extension is needed: sampling is `grid_sample`, differentiable in the offsets.
    """

    fixed_by_tracing = True  # an image without boxes takes another branch

    def __init__(self, plain: ROIPooler, channels: int, resolution: int, scale: float, gamma: float = 0.1) -> None:
        """
        Args:
            plain: pooler of the features that offsets are predicted from.
            channels: C of the features.
            resolution: number of bins along each side.
            scale: feature pixels per image pixel.
            gamma: offset, in RoI sizes, for a prediction of 1.
        """
        super().__init__()
        self.plain = plain
        self.resolution, self.scale, self.gamma = resolution, scale, gamma
        hidden, last = nn.Linear(channels, 256), nn.Linear(256, 2 * resolution * resolution)
        self.offset = nn.Sequential(hidden, nn.ReLU(inplace=True), last)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """Features of RoIs.

        Args:
            features: one tensor (B, C, h, w).
            boxes: B sets of boxes in image pixels.

        Returns:
            (R, C, resolution, resolution), R over all images.
        """
        (feature,) = features
        pooled = self.plain(features, boxes).mean(dim=(2, 3))
        side = self.resolution
        offsets = self.offset(pooled).view(-1, 2, side, side) * self.gamma
        counts = [len(b) for b in boxes]
        parts = [
            self._sample(feature[i : i + 1], b.tensor, o)
            for i, (b, o) in enumerate(zip(boxes, offsets.split(counts), strict=True))
            if len(b)
        ]
        return torch.cat(parts) if parts else feature.new_zeros(0, feature.shape[1], side, side)

    def _sample(self, feature: Tensor, boxes: Tensor, offsets: Tensor) -> Tensor:
        height, width = feature.shape[-2:]
        side = self.resolution
        # Pixel centres lie at half-integers ("aligned" RoIAlign), as in grid_sample with align_corners=False.
        corner = boxes[:, :2] * self.scale
        size = (boxes[:, 2:] - boxes[:, :2]) * self.scale
        steps = (torch.arange(2 * side, device=boxes.device) + 0.5) / (2 * side)
        moved = offsets.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x = corner[:, 0, None, None] + size[:, 0, None, None] * (steps[None, None] + moved[:, 0])
        y = corner[:, 1, None, None] + size[:, 1, None, None] * (steps[None, :, None] + moved[:, 1])
        grid = torch.stack([x / width, y / height], dim=-1) * 2 - 1
        grid = grid.reshape(1, -1, 2 * side, 2).to(feature)
        samples = F.grid_sample(feature, grid, padding_mode="border", align_corners=False)
        samples = samples.view(feature.shape[1], len(boxes), 2 * side, 2 * side).transpose(0, 1)
        return F.avg_pool2d(samples, 2)


def build_pooler(cfg: CfgNode, shape: ShapeSpec) -> nn.Module:
    """RoI pooler described by MODEL.ROI_BOX_HEAD, for a backbone feature of the given shape."""
    head = cfg.MODEL.ROI_BOX_HEAD
    arguments = {
        "output_size": head.POOLER_RESOLUTION,
        "scales": (1.0 / shape.stride,),
        "sampling_ratio": head.POOLER_SAMPLING_RATIO,
        "pooler_type": head.POOLER_TYPE,
    }
    if head.POOLING == "deformable":
        return DeformableRoIPooler(ROIPooler(**arguments), shape.channels, head.POOLER_RESOLUTION, 1.0 / shape.stride)
    return ROIPooler(**arguments)
