"""Images of different sizes through one pass of a ResNet, with the result of passing each alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, nn

# What a pass of a ResNet costs beside its pixels, in pixels that cost as much: a GPU is kept waiting for the start of
# some hundred kernels (measured on an H100), a CPU for nothing.
PASS_COST_GPU = 300_000
_STRIDE = 32  # of res5, so that every level of a canvas is a whole fraction of it
# Blocks of convolutions, sums and rectifiers alone.
_BLOCKS = (BasicBlock, BottleneckBlock)


def group_by_size(sizes: Sequence[tuple[int, int]], pass_cost: float) -> list[list[int]]:
    """Groups images so that passing group after group costs least.

    A group of one size is passed as it is; the images of others lie on canvases that hold the largest.

    Args:
        sizes: (height, width) of each image.
        pass_cost: what a pass costs beside its pixels, in pixels. 0 joins images of equal size only.

    Returns:
        indices of the images, group by group.
    """
    alike: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        alike.setdefault(tuple(size), []).append(index)
    ordered = sorted(alike, key=lambda size: (size[0] * size[1], size))
    # The cost of the first sizes together, and where the last of their groups starts.
    best: list[tuple[float, int]] = [(0.0, 0)]
    for stop in range(1, len(ordered) + 1):
        options, images = [], 0
        for start in range(stop - 1, -1, -1):
            images += len(alike[ordered[start]])
            height, width = ordered[start] if start == stop - 1 else canvas_size(ordered[start:stop])
            options.append((best[start][0] + pass_cost + images * height * width, start))
        best.append(min(options, key=lambda option: (option[0], -option[1])))
    groups, stop = [], len(ordered)
    while stop:
        start = best[stop][1]
        groups.append([index for size in ordered[start:stop] for index in alike[size]])
        stop = start
    return groups[::-1]


def canvas_size(sizes: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The least (height, width), multiples of 32, that hold images of these sizes."""
    height, width = (-(-max(s[d] for s in sizes) // _STRIDE) * _STRIDE for d in (0, 1))
    return height, width


class ValidArea:
    """Which pixels of each level of a padded batch belong to the images."""

    def __init__(self, sizes: Sequence[tuple[int, int]], canvas: Tensor) -> None:
        """
        Args:
            sizes: (height, width) of the n images.
            canvas: (n, C, H, W) that holds them.
        """
        self._height = canvas.shape[2]
        self._sizes = torch.tensor(sizes, device=canvas.device)
        self._masks: dict[tuple[int, int], Tensor] = {}

    def keep(self, features: Tensor) -> Tensor:
        """Sets everything outside the images to 0, in features (n, c, h, w) at any level."""
        level = tuple(features.shape[2:])
        if level not in self._masks:
            sizes = -(-self._sizes // (self._height // level[0]))  # each stride rounds up
            rows = torch.arange(level[0], device=features.device) < sizes[:, :1]
            columns = torch.arange(level[1], device=features.device) < sizes[:, 1:]
            self._masks[level] = (rows[:, :, None] & columns[:, None])[:, None]
        return features * self._masks[level]


@contextmanager
def padded_with_zeros(modules: Sequence[nn.Module], valid: ValidArea) -> Iterator[None]:
    """Within, every convolution that looks beyond its pixel sees zeros outside the images, as it does at their borders.

    Its output is treated likewise where a pooling may follow, as in the stem; in residual blocks none does.
    Normalisation must not look at other pixels: batch normalisation with running statistics does not.
    """
    handles = []
    for module in modules:
        layers = list(module.modules())
        in_blocks = {inner for layer in layers if isinstance(layer, _BLOCKS) for inner in layer.modules()}
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
                handles.append(layer.register_forward_pre_hook(lambda _, inputs: (valid.keep(inputs[0]),)))
                if layer not in in_blocks:
                    handles.append(layer.register_forward_hook(lambda _, __, output: valid.keep(output)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def looks_at_other_pixels(modules: Sequence[nn.Module]) -> bool:
    """Whether a layer normalises over the pixels of an image, so that padding would change its result."""
    kinds = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    return any(isinstance(m, kinds) for module in modules for m in module.modules())


def pool_maximum(features: Tensor, valid: ValidArea) -> Tensor:
    """Maximum (n, c) over the pixels of each image, of features (n, c, h, w) that are nowhere negative."""
    return F.adaptive_max_pool2d(valid.keep(features), 1).flatten(1)
