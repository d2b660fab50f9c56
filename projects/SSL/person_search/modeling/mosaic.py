"""Images of different sizes side by side in one picture: one pass of a ResNet with the result of passing each alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn
from torchvision.ops import roi_pool

# Side of a cell in pixels, the stride of res5: images begin at whole cells, so that each level of a ResNet cuts them as
# it would cut them alone, and an empty cell between two keeps each out of the other's convolutions.
_CELL = 32
# A mosaic's sides are multiples of so many cells: kernels are chosen anew for each size that was not met before.
_HEIGHT_STEP, _WIDTH_STEP = 4, 8
# Heights that are tried beyond the least possible one.
_HEIGHTS_TRIED = 4
# Blocks of convolutions, sums and rectifiers alone.
_BLOCKS = (BasicBlock, BottleneckBlock)


@dataclass(frozen=True)
class Layout:
    """Where images lie in a mosaic.

    Attributes:
        size: (height, width) of the mosaic in pixels.
        corners: (top, left) of each image in pixels.
    """

    size: tuple[int, int]
    corners: list[tuple[int, int]]


def arrange(sizes: Sequence[tuple[int, int]]) -> Layout:
    """Stacks images in columns, side by side in a strip of little area.

    Args:
        sizes: (height, width) of one image or more, in pixels.

    Returns:
        their places. Each begins at a multiple of 32 pixels, and 32 empty ones or more lie between any two.
    """
    cells = [(-(-height // _CELL), -(-width // _CELL)) for height, width in sizes]
    least = _rounded_up(max(height for height, _ in cells), _HEIGHT_STEP)
    heights = range(least, least + (_HEIGHTS_TRIED + 1) * _HEIGHT_STEP, _HEIGHT_STEP)
    tried = [_stack(cells, height) for height in heights]
    return min(tried, key=lambda layout: layout.size[0] * layout.size[1])


def _stack(cells: Sequence[tuple[int, int]], height: int) -> Layout:
    """The strip of a height: the widest image first, each below others where it still fits, else in a new column."""
    columns: list[list[int]] = []  # left end and free height of each
    corners = [(0, 0)] * len(cells)
    width = 0
    for index in sorted(range(len(cells)), key=lambda i: (-cells[i][1], -cells[i][0], i)):
        own_height, own_width = cells[index]
        column = next((c for c in columns if c[1] >= own_height), None)
        if column is None:
            column = [width + 1 if columns else 0, height]
            columns.append(column)
            width = column[0] + own_width
        corners[index] = ((height - column[1]) * _CELL, column[0] * _CELL)
        column[1] -= own_height + 1
    return Layout((height * _CELL, _rounded_up(width, _WIDTH_STEP) * _CELL), corners)


def _rounded_up(number: int, step: int) -> int:
    return -(-number // step) * step


class Mosaic:
    """A picture (1, C, H, W) of n images with zeros between them, and what belongs to which at each level of a
    ResNet."""

    def __init__(self, images: Sequence[Tensor]) -> None:
        """
        Args:
            images: n times (C, h, w).
        """
        self._sizes = [tuple(image.shape[1:]) for image in images]
        self._layout = arrange(self._sizes)
        self.picture = images[0].new_zeros(1, len(images[0]), *self._layout.size)
        for image, (top, left, bottom, right) in zip(images, self._areas(1), strict=True):
            self.picture[0, :, top:bottom, left:right] = image
        self._masks: dict[int, Tensor] = {}

    def keep(self, features: Tensor) -> Tensor:
        """Sets everything between the images to 0, in features (1, c, h, w) at any level."""
        stride = self._stride(features)
        if stride == 1:
            return features
        if stride not in self._masks:
            mask = torch.zeros(1, 1, *features.shape[2:], dtype=torch.bool)
            for top, left, bottom, right in self._areas(stride):
                mask[..., top:bottom, left:right] = True
            self._masks[stride] = mask.to(features.device, non_blocking=True)
        return features * self._masks[stride]

    def pool_maximum(self, features: Tensor) -> Tensor:
        """Maximum (n, c) over the pixels of each image, of features (1, c, h, w)."""
        # RoI pooling counts the last row and column in.
        boxes = [
            (0, left, top, right - 1, bottom - 1) for top, left, bottom, right in self._areas(self._stride(features))
        ]
        rois = torch.tensor(boxes, dtype=torch.promote_types(features.dtype, torch.float32))
        return roi_pool(features, rois.to(features.device, non_blocking=True), output_size=1).flatten(1)

    def _stride(self, features: Tensor) -> int:
        return self._layout.size[0] // features.shape[2]

    def _areas(self, stride: int) -> list[tuple[int, int, int, int]]:
        """(top, left, bottom, right) of each image at a level; what is left over from whole strides counts as one."""
        return [
            (top // stride, left // stride, -(-(top + height) // stride), -(-(left + width) // stride))
            for (height, width), (top, left) in zip(self._sizes, self._layout.corners, strict=True)
        ]


@contextmanager
def kept_apart(modules: Sequence[nn.Module], mosaic: Mosaic) -> Iterator[None]:
    """Within, every convolution that looks beyond its pixel sees zeros between the images, as it does at their borders.

    Its output is treated likewise where a pooling may follow, as in the stem; in residual blocks none does.
    Normalisation must not look at other pixels: batch normalisation with running statistics does not.
    """
    handles = []
    for module in modules:
        layers = list(module.modules())
        in_blocks = {inner for layer in layers if isinstance(layer, _BLOCKS) for inner in layer.modules()}
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
                handles.append(layer.register_forward_pre_hook(lambda _, inputs: (mosaic.keep(inputs[0]),)))
                if layer not in in_blocks:
                    handles.append(layer.register_forward_hook(lambda _, __, output: mosaic.keep(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def looks_at_other_pixels(modules: Sequence[nn.Module]) -> bool:
    """Whether a layer normalises over the pixels of an image, so that a neighbour would change its result."""
    kinds = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    return any(isinstance(m, kinds) for module in modules for m in module.modules())
