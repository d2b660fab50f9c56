"""Images of different sizes through one pass of a ResNet, with the result of passing each alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# A pass over many small images costs little more than over one; a canvas much larger than its images costs more.
_MOST_WASTE = 2.0
_STRIDE = 32  # of res5, so that every level of a canvas is a whole fraction of it


def group_by_size(sizes: Sequence[tuple[int, int]], most_waste: float = _MOST_WASTE) -> list[list[int]]:
    """Groups images so that the canvases of a group have at most `most_waste` times the pixels of its images.

    Args:
        sizes: (height, width) of each image.
        most_waste: 1 or more; an image alone always forms a group.

    Returns:
        indices of the images, group by group.
    """
    groups: list[list[int]] = []
    pixels = 0
    for index in sorted(range(len(sizes)), key=lambda i: (sizes[i][0] * sizes[i][1], i)):
        trial = [*groups[-1], index] if groups else [index]
        canvas = max(sizes[i][0] for i in trial) * max(sizes[i][1] for i in trial)
        area = sizes[index][0] * sizes[index][1]
        if groups and canvas * len(trial) <= most_waste * (pixels + area):
            groups[-1], pixels = trial, pixels + area
        else:
            groups.append([index])
            pixels = area
    return groups


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

    The outputs of such layers before which nothing is convolved any more (the stem's pooling) are treated likewise.
    Normalisation must not look at other pixels: batch normalisation with running statistics does not.
    """
    handles = []
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
                handles.append(layer.register_forward_pre_hook(lambda _, inputs: (valid.keep(inputs[0]),)))
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
