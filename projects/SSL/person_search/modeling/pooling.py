"""Deformable RoI pooling (Deformable ConvNets), which the ICCV 2023 text of the paper uses instead of RoIAlign."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes
from torch import Tensor, nn


class DeformableRoIPooler(nn.Module):
    """RoIAlign whose bins are moved by offsets that are learnt from the RoI's own features.

    Plain RoIAlign features predict one (dx, dy) for each bin, in units of `gamma` times the RoI's size; every bin is
    then the mean of 2 x 2 bilinear samples at its moved place. Offsets start at 0, where it equals RoIAlign with
    `sampling_ratio` 2. It needs no compiled extension: sampling is `grid_sample`, differentiable in the offsets.
    """

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
