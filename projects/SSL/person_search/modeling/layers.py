"""Layers: normalisation in one operation or over all processes, box regression, RoI pooling, whole-pixel anchors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

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
    """Detectron2's anchors, in its order, with the corners rounded around the centre. SeqNet was trained with these."""

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) xyxy in whole pixels around (0, 0): size by size, ratio by ratio."""
        return super().generate_cell_anchors(sizes, aspect_ratios).round()


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Multiplies the scales of batch normalisation into the convolutions, in place. For inference only.

    It applies to Detectron2's convolutions with a `norm` of fixed statistics: `FrozenBatchNorm2d`, or any
    `BatchNorm2d` in evaluation mode; modules with a method `fold_batch_norms` of their own fold theirs. Outputs stay
    the same but for rounding. Names in the state dict change, so that the model can neither be trained nor load a
    checkpoint afterwards.

    Args:
        model: with its weights.

    Returns:
        how many were folded.
    """
    folded = 0
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.norm = None
        folded += 1
    return folded + sum(m.fold_batch_norms() for m in model.modules() if hasattr(m, "fold_batch_norms"))


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


class SyncedBatchNorm1d(nn.BatchNorm1d):
    """`BatchNorm1d` of (R, C) whose training statistics are those of all processes together.

    With one or two images a process, statistics of a process alone would make the features of a person depend on how
    the batch is spread. Processes may have different R. Works on CPUs too; with one process it is `BatchNorm1d`.

    In training some rows can be normalised without being counted: the statistics, and with them what all other rows
    become, are then the same as if these rows were not there.

    Attributes:
        synced: False lets each process use its own rows, so that not all have to call it equally often.
    """

    synced = True

    def forward(self, features: Tensor, counted: int | None = None) -> Tensor:
        """Normalised features (R, C).

        Args:
            features: (R, C).
            counted: how many rows, the first ones, make the statistics in training; None: all.
        """
        if not self.training:
            return super().forward(features)
        own = features if counted is None else features[:counted]
        rest = features[len(own) :]
        if comm.get_world_size() == 1 or not self.synced:
            if len(own) < 2:
                # One row has no variance: a batch without proposals but with a person has no more.
                return F.batch_norm(features, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
            if len(rest) == 0:
                return super().forward(own)
            variance, mean = torch.var_mean(own, dim=0, correction=0)
            return torch.cat([super().forward(own), self._normalised(rest, mean, variance)])
        count = own.new_full((1,), float(len(own)))
        sums = torch.cat([count, own.sum(dim=0), own.square().sum(dim=0)])
        total, first, second = differentiable_all_reduce(sums).split([1, self.num_features, self.num_features])
        mean = first / total.clamp(min=1)
        variance = (second / total.clamp(min=1) - mean.square()).clamp(min=0)
        self._track(mean.detach(), variance.detach(), total.detach())
        return self._normalised(features, mean, variance)

    def _normalised(self, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
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
    """Lets batch normalisation use its running statistics and leave them alone.

    Crops have other statistics than scenes; were they counted, the shared backbone would serve neither at test time.
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
    """Class-agnostic box regression, optionally with batch normalisation behind it (SeqNet's BN neck)."""

    def __init__(self, channels: int, bn_neck: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 4)
        self.norm = SyncedBatchNorm1d(4) if bn_neck else nn.Identity()
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)
        if bn_neck:
            nn.init.normal_(self.norm.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """(R, C) -> (R, 4) box deltas, float32."""
        with torch.autocast(features.device.type, enabled=False):
            return self.norm(self.linear(features.float()))


def unsynced_norms(module: nn.Module) -> list[_BatchNorm]:
    """The batch normalisations of a module whose running statistics each process collects on its own."""
    synced = (SyncedBatchNorm1d, NaiveSyncBatchNorm, nn.SyncBatchNorm)
    return [
        m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats and not isinstance(m, synced)
    ]


@torch.no_grad()
def average_running_statistics(layers: Iterable[_BatchNorm]) -> None:
    """Gives running statistics of layers, the same ones on every process, their mean over the processes."""
    statistics = [value for layer in layers for value in (layer.running_mean, layer.running_var)]
    if comm.get_world_size() == 1 or not statistics:
        return
    packed = torch.cat([value.flatten() for value in statistics])
    dist.all_reduce(packed)
    means = (packed / comm.get_world_size()).split([value.numel() for value in statistics])
    for value, mean in zip(statistics, means, strict=True):
        value.copy_(mean.view_as(value))


class DeformableRoIPooler(nn.Module):
    """RoIAlign whose bins are moved by offsets that are learnt from the RoI's own features.

    Plain RoIAlign features predict one (dx, dy) for each bin, in units of `gamma` times the RoI's size; every bin is
    then the mean of 2 x 2 bilinear samples at its moved place. Offsets start at 0, where it equals RoIAlign with
    `sampling_ratio` 2. It needs no compiled extension: sampling is `grid_sample`, differentiable in the offsets.
    """

    fixed_by_tracing = True  # an image without boxes takes another way

    def __init__(self, plain: ROIPooler, channels: int, resolution: int, scale: float, gamma: float = 0.1) -> None:
        """
        Args:
            plain: pools the features from which offsets are predicted.
            channels: C of the features.
            resolution: bins along each side.
            scale: feature pixels for an image pixel.
            gamma: offset, in RoI sizes, for a prediction of 1.
        """
        super().__init__()
        self.plain = plain
        self.resolution, self.scale, self.gamma = resolution, scale, gamma
        self.offset = nn.Sequential(
            nn.Linear(channels, 256), nn.ReLU(inplace=True), nn.Linear(256, 2 * resolution * resolution)
        )
        nn.init.zeros_(self.offset[-1].weight)
        nn.init.zeros_(self.offset[-1].bias)

    def forward(self, features: list[Tensor], boxes: list[Boxes]) -> Tensor:
        """
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
        # Pixel centres lie at integers plus a half ("aligned" RoIAlign); grid_sample without aligned corners agrees.
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
    """The pooling of RoIs that MODEL.ROI_BOX_HEAD describes, of a backbone feature of a shape."""
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
