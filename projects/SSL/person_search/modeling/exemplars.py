"""Multi-scale exemplars: each annotated person cropped, cut out of the background and resized (paper Eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock, ResNet
from detectron2.structures import Instances
from torch import Tensor, nn
from torchvision.ops import roi_pool
from torchvision.transforms import RandomErasing

from .embedding import GlobalPooling, PooledFeatures
from .layers import running_statistics


class PersonCrops:
    """The persons of a batch of images. A crop covers every pixel that its box touches, at least one.

    Crops are read straight from the images, on their device and for all persons in one operation, whatever their sizes.
    Background pixels take one colour, by default 0, which is the mean colour of a normalised image.

    Nothing here waits for a GPU: what decides about sizes is computed on the CPU, and what a GPU needs of it is sent.

    Attributes:
        sizes: P times (height, width) in pixels, image after image.
    """

    def __init__(
        self,
        images: Tensor,
        boxes: Sequence[Tensor],
        image_sizes: Sequence[tuple[int, int]],
        masks: Sequence[Tensor | None],
        background: Tensor | None = None,
    ) -> None:
        """
        Args:
            images: (B, C, H, W) normalised and padded.
            boxes: for each image (P_b, 4) xyxy in pixels, best on the CPU: those on a GPU are waited for.
            image_sizes: for each image (height, width) without its padding.
            masks: for each image (P_b, height, width) bool foreground, or None to keep the background.
            background: (C,) colour of what is no foreground, normalised, on the images' device; None: 0.
        """
        counts = [len(b) for b in boxes]
        self._height, self._width = images.shape[-2:]
        self._planes = images.movedim(1, 0).flatten(1)  # (C, B * H * W): pixels by one number
        image = torch.repeat_interleave(torch.tensor(counts), output_size=sum(counts))
        limit = torch.tensor([(width, height) for height, width in image_sizes], dtype=torch.float32)[image]
        corners = torch.cat(list(boxes)).to("cpu", torch.float32)
        first = torch.minimum(corners[:, :2].floor().clamp(min=0), limit - 1)
        end = torch.maximum(torch.minimum(corners[:, 2:].ceil(), limit), first + 1)
        first, length = first.long(), (end - first).long()
        self._image, self._first, self._length = (
            t.to(images.device, non_blocking=True) for t in (image, first, length)
        )
        self._masks = _stack(masks, counts, images).flatten() if any(m is not None for m in masks) else None
        self._background = background
        self.sizes: list[tuple[int, int]] = [(h, w) for w, h in length.tolist()]

    def __len__(self) -> int:
        """P."""
        return len(self.sizes)

    def resized(self, size: tuple[int, int]) -> Tensor:
        """All crops resized bilinearly (pixel centres aligned, borders repeated, no anti-aliasing).

        Args:
            size: (height, width) in pixels.

        Returns:
            (P, C, height, width).
        """
        persons = torch.arange(len(self), device=self._image.device)
        top, bottom, down = self._sources(1, size[0])
        left, right, across = self._sources(0, size[1])
        across, down = across[:, None, None], down[:, None, :, None]
        upper = torch.lerp(self._pixels(persons, top, left), self._pixels(persons, top, right), across)
        lower = torch.lerp(self._pixels(persons, bottom, left), self._pixels(persons, bottom, right), across)
        return torch.lerp(upper, lower, down).contiguous()

    def cut(self, persons: Sequence[int], size: tuple[int, int]) -> Tensor:
        """Some crops at their own sizes, each in the top left corner of zeros.

        Args:
            persons: n of 0..P-1.
            size: (height, width) of the result, at least that of each crop.

        Returns:
            (n, C, height, width).
        """
        index = torch.tensor(list(persons), dtype=torch.int64).to(self._image.device, non_blocking=True)
        (columns, in_width), (rows, in_height) = (self._window(index, axis, size[1 - axis]) for axis in (0, 1))
        inside = in_height[:, None, :, None] & in_width[:, None, None]
        return (self._pixels(index, rows, columns) * inside).contiguous()

    def _pixels(self, persons: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Foreground pixels (n, C, h, w) of images at the rows (n, h) and columns (n, w) of each of n persons."""
        place = rows[:, :, None] * self._width + columns[:, None]

        def pick(values: Tensor, area: Tensor) -> Tensor:
            index = place + (area * (self._height * self._width))[:, None, None]
            return values.index_select(-1, index.flatten()).view(*values.shape[:-1], *place.shape)

        pixels = pick(self._planes, self._image[persons])
        if self._masks is not None:
            foreground = pick(self._masks, persons)
            if self._background is None:
                pixels *= foreground
            else:
                pixels = torch.where(foreground, pixels, self._background.to(pixels)[:, None, None, None])
        return pixels.movedim(0, 1)

    def _sources(self, axis: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
        """The two pixels (P, length) of the image that each pixel of the result lies between, and the second one's
        weight."""
        steps = torch.arange(length, device=self._image.device) + 0.5
        own = self._length[:, axis, None]
        place = (steps * (own / length) - 0.5).clamp(min=0)
        low = torch.minimum(place.long(), own - 1)
        high, first = torch.minimum(low + 1, own - 1), self._first[:, axis, None]
        return first + low, first + high, place - low

    def _window(self, persons: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
        """The pixels (n, length) of the image from a crop's first on, and which of them belong to it."""
        steps = torch.arange(length, device=self._image.device)
        own = self._length[persons, axis, None]
        return self._first[persons, axis, None] + torch.minimum(steps, own - 1), steps < own


def _stack(masks: Sequence[Tensor | None], counts: Sequence[int], images: Tensor) -> Tensor:
    """Masks of all images, (P, H, W) bool; those of images without any are True everywhere."""
    height, width = images.shape[-2:]
    parts = []
    for mask, count in zip(masks, counts, strict=True):
        if mask is None:
            parts.append(torch.ones(count, height, width, dtype=torch.bool, device=images.device))
        else:
            parts.append(F.pad(mask.to(images.device), (0, width - mask.shape[2], 0, height - mask.shape[1])))
    return torch.cat(parts)


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
    """Places of images in a mosaic.

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
    tried = [_stacked_cells(cells, height) for height in heights]
    return min(tried, key=lambda layout: layout.size[0] * layout.size[1])


def _stacked_cells(cells: Sequence[tuple[int, int]], height: int) -> Layout:
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


def fits_a_mosaic(backbone: nn.Module, res5: nn.Module) -> bool:
    """Whether a mosaic gives the features that each image would have alone: cells are those of Detectron2's ResNets."""
    return isinstance(backbone, ResNet) and not looks_at_other_pixels([backbone, res5])


def looks_at_other_pixels(modules: Sequence[nn.Module]) -> bool:
    """Whether a layer normalises over the pixels of an image, so that a neighbour would change its result."""
    kinds = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    return any(isinstance(m, kinds) for module in modules for m in module.modules())


class ExemplarBranch(nn.Module):
    """Features of every annotated person at K fixed scales and at its original scale.

    The layers are the main branch's (`backbone` and the re-id head's res5) unless `separate` is given.
    """

    def __init__(
        self,
        *,
        scales: Sequence[tuple[int, int]],
        original: bool,
        mask_background: bool,
        background: Sequence[float] | None = None,
        pooling: GlobalPooling | None = None,
        separate: nn.ModuleDict | None = None,
        random_erasing: float = 0.0,
    ) -> None:
        """
        Args:
            scales: (height, width) in pixels of the fixed scales.
            original: whether the crop at its own size takes part.
            mask_background: whether crops are multiplied by `gt_masks` where the instances have them.
            background: colour that the background takes, one value a channel of the normalised images; None: 0, their
                mean colour.
            pooling: how crops become vectors, that of the second head; None: their maximum.
            separate: an exemplar backbone of its own, with modules "backbone" and "res5".
            random_erasing: share of the exemplars in which, in training, a random rectangle takes the mean colour
                (Zhong et al., 2020; not in the paper).
        """
        super().__init__()
        self.scales = [(int(h), int(w)) for h, w in scales]
        self.original = original
        self.mask_background = mask_background
        colour = None if background is None else torch.tensor(background, dtype=torch.float32)
        self.register_buffer("background", colour, persistent=False)
        self.pooling = pooling or GlobalPooling()
        self.separate = separate
        self.random_erasing = random_erasing

    @property
    def per_person(self) -> int:
        """Number of exemplars of one person."""
        return len(self.scales) + int(self.original)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Instances],
        boxes: Sequence[Tensor],
        backbone: nn.Module,
        res5: nn.Module,
    ) -> PooledFeatures:
        """
        Args:
            images: (B, C, H, W) normalised and padded.
            targets: B ground truths, maybe with `gt_masks`, on the images' device.
            boxes: their boxes, B times (P_b, 4), best on the CPU (see `PersonCrops`).
            backbone: the main branch's stem to res4, returning {"res4": features}.
            res5: the re-id head's res5.

        Returns:
            Features of P * S exemplars, P over all images and S = `per_person`: person by person, the fixed scales in
            their order first, the original scale last.
        """
        if self.separate is not None:
            backbone, res5 = self.separate["backbone"], self.separate["res5"]
        with running_statistics(backbone), running_statistics(res5):
            crops = self._crops(images, targets, boxes)
            if not len(crops):
                return self._without_persons(images, backbone, res5)
            global_maximum = self.pooling.kind == "max" and self.pooling.stripes == 1
            if images.is_cuda and global_maximum and fits_a_mosaic(backbone, res5):
                return self._in_one_pass(crops, backbone, res5)
            return self._size_by_size(crops, backbone, res5)

    def _in_one_pass(self, crops: PersonCrops, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """On a GPU a pass costs what the start of its kernels costs, so one takes all exemplars."""
        exemplars: list[Any] = [self._erased(crops.resized(size)) for size in self.scales]
        if self.original:
            longest = tuple(max(sides) for sides in zip(*crops.sizes, strict=True))
            originals = crops.cut(range(len(crops)), longest)
            parts = zip(originals, crops.sizes, strict=True)
            exemplars.append([self._erased(image[None, :, :height, :width])[0] for image, (height, width) in parts])
        mosaic = Mosaic([image for person in zip(*exemplars, strict=True) for image in person])
        with kept_apart([backbone, res5], mosaic):
            features = backbone(mosaic.picture)["res4"]
            return PooledFeatures(mosaic.pool_maximum(features), mosaic.pool_maximum(res5(features)))

    def _size_by_size(self, crops: PersonCrops, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """On a CPU the pixels alone count, and these are the fewest."""
        resized = [self._erased(crops.resized(size)) for size in self.scales]
        by_scale = [pool_crops(exemplars, backbone, res5, self.pooling) for exemplars in resized]
        if self.original:
            cut = [self._erased(crops.cut([i], size)) for i, size in enumerate(crops.sizes)]
            alone = [pool_crops(exemplar, backbone, res5, self.pooling) for exemplar in cut]
            by_scale.append(PooledFeatures.cat(alone))
        return PooledFeatures(
            *(torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*by_scale, strict=True))  # (P, S, C)
        )

    def _erased(self, exemplars: Tensor) -> Tensor:
        """Exemplars (n, C, h, w), in training each with a random rectangle in the mean colour at the given rate."""
        if not (self.training and self.random_erasing):
            return exemplars
        erase = RandomErasing(self.random_erasing, inplace=True)
        return torch.stack([erase(exemplar) for exemplar in exemplars]) if len(exemplars) else exemplars

    def _crops(self, images: Tensor, targets: Sequence[Instances], boxes: Sequence[Tensor]) -> PersonCrops:
        masked = [self.mask_background and t.has("gt_masks") for t in targets]
        return PersonCrops(
            images,
            boxes,
            [t.image_size for t in targets],
            [t.gt_masks.tensor if m else None for t, m in zip(targets, masked, strict=True)],
            self.background,
        )

    def _without_persons(self, images: Tensor, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """No rows, but joined to the graph: with several processes each must use every parameter in each iteration."""
        dummy = pool_crops(images[:1, :, :32, :32], backbone, res5, self.pooling)
        return PooledFeatures(dummy.res4[:0], dummy.res5[:0])


def pool_crops(crops: Tensor, backbone: nn.Module, res5: nn.Module, pooling: GlobalPooling) -> PooledFeatures:
    """Features of crops (P, C, h, w) of one size."""
    features = backbone(crops)["res4"]
    return PooledFeatures(pooling(features), pooling(res5(features)))
