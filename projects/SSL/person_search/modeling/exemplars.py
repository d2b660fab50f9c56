"""Multi-scale exemplars: every annotated person cropped, masked and resized (paper Eq. 1)."""

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
    """Crops of the persons in a batch of images. A crop covers every pixel that its box touches, at least one.

    Crops of all sizes are read from the images in one operation, on their device. Background pixels take a single
    color, by default 0, the mean color of a normalized image.

    Sizes are computed on the CPU and sent to the GPU, so nothing here synchronizes with a GPU.

    Attributes:
        sizes: (height, width) of the P crops in pixels, image by image.
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
            images: (B, C, H, W) normalized and padded.
            boxes: (P_b, 4) xyxy in pixels for each image, preferably on the CPU (boxes on a GPU cause a
                synchronization).
            image_sizes: (height, width) of each image without padding.
            masks: (P_b, height, width) bool foreground for each image, or None to keep the background.
            background: (C,) normalized background color, on the images' device; None for 0.
        """
        counts = [len(b) for b in boxes]
        self._height, self._width = images.shape[-2:]
        self._planes = images.movedim(1, 0).flatten(1)  # (C, B * H * W), for linear pixel indices
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
        """Number of persons, P."""
        return len(self.sizes)

    def resized(self, size: tuple[int, int]) -> Tensor:
        """All crops, resized bilinearly (half-pixel centres, edge padding, no anti-aliasing).

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
        """Selected crops at their original sizes, zero-padded at the bottom and on the right.

        Args:
            persons: indices of n persons.
            size: (height, width) of the result, no smaller than any of the crops.

        Returns:
            (n, C, height, width).
        """
        index = torch.tensor(list(persons), dtype=torch.int64).to(self._image.device, non_blocking=True)
        (columns, in_width), (rows, in_height) = (self._window(index, axis, size[1 - axis]) for axis in (0, 1))
        inside = in_height[:, None, :, None] & in_width[:, None, None]
        return (self._pixels(index, rows, columns) * inside).contiguous()

    def _pixels(self, persons: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Foreground pixels (n, C, h, w) at given image rows (n, h) and columns (n, w) of n persons."""
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
        """Image pixels (P, length) on either side of every output pixel along an axis, and the weight of the second."""
        steps = torch.arange(length, device=self._image.device) + 0.5
        own = self._length[:, axis, None]
        place = (steps * (own / length) - 0.5).clamp(min=0)
        low = torch.minimum(place.long(), own - 1)
        high, first = torch.minimum(low + 1, own - 1), self._first[:, axis, None]
        return first + low, first + high, place - low

    def _window(self, persons: Tensor, axis: int, length: int) -> tuple[Tensor, Tensor]:
        """Image pixels (n, length) along an axis, starting at the crop's first, and whether each lies in the crop."""
        steps = torch.arange(length, device=self._image.device)
        own = self._length[persons, axis, None]
        return self._first[persons, axis, None] + torch.minimum(steps, own - 1), steps < own


def _stack(masks: Sequence[Tensor | None], counts: Sequence[int], images: Tensor) -> Tensor:
    """Masks of all images, (P, H, W) bool; True everywhere for images without masks."""
    height, width = images.shape[-2:]
    parts = []
    for mask, count in zip(masks, counts, strict=True):
        if mask is None:
            parts.append(torch.ones(count, height, width, dtype=torch.bool, device=images.device))
        else:
            parts.append(F.pad(mask.to(images.device), (0, width - mask.shape[2], 0, height - mask.shape[1])))
    return torch.cat(parts)


# Side of a cell in pixels, the stride of res5. Images start at cell borders, so each level of a ResNet samples them as
# it would on their own; an empty cell between two images keeps them out of each other's convolutions.
_CELL = 32
# Granularity of a mosaic's height and width in cells: cuDNN selects kernels anew for every new input size.
_HEIGHT_STEP, _WIDTH_STEP = 4, 8
# Number of heights tried beyond the minimum.
_HEIGHTS_TRIED = 4
# Residual blocks, which contain no pooling.
_BLOCKS = (BasicBlock, BottleneckBlock)


@dataclass(frozen=True)
class Layout:
    """Positions of images in a mosaic.

    Attributes:
        size: (height, width) of the mosaic in pixels.
        corners: (top, left) of each image in pixels.
    """

    size: tuple[int, int]
    corners: list[tuple[int, int]]


def arrange(sizes: Sequence[tuple[int, int]]) -> Layout:
    """Layout of images in columns, packed into a strip of small area.

    Args:
        sizes: (height, width) of one or more images, in pixels.

    Returns:
        positions at multiples of 32 pixels, with gaps of at least 32 pixels.
    """
    cells = [(-(-height // _CELL), -(-width // _CELL)) for height, width in sizes]
    least = _rounded_up(max(height for height, _ in cells), _HEIGHT_STEP)
    heights = range(least, least + (_HEIGHTS_TRIED + 1) * _HEIGHT_STEP, _HEIGHT_STEP)
    tried = [_stacked_cells(cells, height) for height in heights]
    return min(tried, key=lambda layout: layout.size[0] * layout.size[1])


def _stacked_cells(cells: Sequence[tuple[int, int]], height: int) -> Layout:
    """Layout of a given height: widest image first, each in the first column with room, else in a new column."""
    columns: list[list[int]] = []  # left edge and free height of each
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
    """Mosaic (1, C, H, W) of n images separated by zeros, with the area of each image at every level of a ResNet.

    Attributes:
        picture: the mosaic, (1, C, H, W).
    """

    def __init__(self, images: Sequence[Tensor]) -> None:
        """
        Args:
            images: n images (C, h, w).
        """
        self._sizes = [(image.shape[1], image.shape[2]) for image in images]
        self._layout = arrange(self._sizes)
        self.picture = images[0].new_zeros(1, len(images[0]), *self._layout.size)
        for image, (top, left, bottom, right) in zip(images, self._areas(1), strict=True):
            self.picture[0, :, top:bottom, left:right] = image
        self._masks: dict[int, Tensor] = {}

    def keep(self, features: Tensor) -> Tensor:
        """Features (1, c, h, w) of any level, zeroed between the images."""
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
        """Maximum (n, c) of features (1, c, h, w) over the pixels of each image."""
        # Box ends are inclusive in RoI pooling.
        boxes = [
            (0, left, top, right - 1, bottom - 1) for top, left, bottom, right in self._areas(self._stride(features))
        ]
        rois = torch.tensor(boxes, dtype=torch.promote_types(features.dtype, torch.float32))
        return roi_pool(features, rois.to(features.device, non_blocking=True), output_size=1).flatten(1)

    def _stride(self, features: Tensor) -> int:
        return self._layout.size[0] // features.shape[2]

    def _areas(self, stride: int) -> list[tuple[int, int, int, int]]:
        """(top, left, bottom, right) of each image at a level, bottom and right rounded up to whole strides."""
        return [
            (top // stride, left // stride, -(-(top + height) // stride), -(-(left + width) // stride))
            for (height, width), (top, left) in zip(self._sizes, self._layout.corners, strict=True)
        ]


@contextmanager
def kept_apart(modules: Sequence[nn.Module], mosaic: Mosaic) -> Iterator[None]:
    """Context in which convolutions larger than 1 x 1 see zeros between the images of a mosaic, as at image borders.

    Outputs are zeroed as well where pooling may follow, as in the stem; residual blocks contain no pooling.
    Normalization must not depend on other pixels, as with batch normalization on running statistics.
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
    """Whether a mosaic yields the same features as separate images. Cells are laid out for Detectron2's ResNets."""
    return isinstance(backbone, ResNet) and not looks_at_other_pixels([backbone, res5])


def looks_at_other_pixels(modules: Sequence[nn.Module]) -> bool:
    """Whether any layer normalizes over the pixels of an image, where neighbors in a mosaic would interfere."""
    kinds = (nn.GroupNorm, nn.LayerNorm, nn.InstanceNorm2d)
    return any(isinstance(m, kinds) for module in modules for m in module.modules())


class ExemplarBranch(nn.Module):
    """Exemplar branch: features of every annotated person at K fixed scales and at its original scale.

    Layers are shared with the main branch (`backbone` and the re-id head's res5) unless `separate` is given.
    """

    background: Tensor | None

    def __init__(
        self,
        *,
        scales: Sequence[tuple[int, int]],
        original: bool,
        mask_background: bool,
        background: Sequence[float] | None,
        pooling: GlobalPooling,
        separate: nn.ModuleDict | None,
        random_erasing: float,
    ) -> None:
        """
        Args:
            scales: (height, width) of the fixed scales in pixels.
            original: whether to include the crop at its original size.
            mask_background: whether to apply `gt_masks` to the crops, if the instances have them.
            background: background color, one value per channel of the normalized images; None for 0, the mean color.
            pooling: pooling of crops into vectors, that of the re-id head.
            separate: separate exemplar network with modules "backbone" and "res5"; None to share the main branch's.
            random_erasing: probability, in training, of erasing a random rectangle of an exemplar with the mean color
                (Zhong et al., 2020; not in the paper).
        """
        super().__init__()
        self.scales = [(int(h), int(w)) for h, w in scales]
        self.original = original
        self.mask_background = mask_background
        color = None if background is None else torch.tensor(background, dtype=torch.float32)
        self.register_buffer("background", color, persistent=False)
        self.pooling = pooling
        self.separate = separate
        self.random_erasing = random_erasing

    @property
    def per_person(self) -> int:
        """Number S of exemplars per person."""
        return len(self.scales) + int(self.original)

    def forward(
        self,
        images: Tensor,
        targets: Sequence[Instances],
        boxes: Sequence[Tensor],
        backbone: nn.Module,
        res5: nn.Module,
    ) -> PooledFeatures:
        """Features of the exemplars.

        Args:
            images: (B, C, H, W) normalized and padded.
            targets: ground truth of the B images, optionally with `gt_masks`, on the images' device.
            boxes: boxes (P_b, 4) of the B images, preferably on the CPU (see `PersonCrops`).
            backbone: stem to res4 of the main branch, returning {"res4": features}.
            res5: res5 of the re-id head.

        Returns:
            Features of P * S exemplars, with P persons over all images and S = `per_person`: person by person, fixed
            scales in order, then the original scale.
        """
        if self.separate is not None:
            backbone, res5 = self.separate["backbone"], self.separate["res5"]
        with running_statistics(backbone), running_statistics(res5):
            crops = self.crops(images, targets, boxes)
            if not len(crops):
                return self._without_persons(images, backbone, res5)
            global_maximum = self.pooling.kind == "max" and self.pooling.stripes == 1
            if images.is_cuda and global_maximum and fits_a_mosaic(backbone, res5):
                return self.in_one_pass(crops, backbone, res5)
            return self.size_by_size(crops, backbone, res5)

    def in_one_pass(self, crops: PersonCrops, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """Features of all exemplars in one mosaic: on a GPU, kernel launches dominate the cost of a pass."""
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

    def size_by_size(self, crops: PersonCrops, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """Features scale by scale: on a CPU the number of pixels dominates, which this keeps minimal."""
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
        """Exemplars (n, C, h, w), in training with random erasing."""
        if not (self.training and self.random_erasing):
            return exemplars
        erase = RandomErasing(self.random_erasing, inplace=True)
        return torch.stack([erase(exemplar) for exemplar in exemplars]) if len(exemplars) else exemplars

    def crops(self, images: Tensor, targets: Sequence[Instances], boxes: Sequence[Tensor]) -> PersonCrops:
        """Crops of the boxes, with their background filled where the branch masks it and the mask is known."""
        masked = [self.mask_background and t.has("gt_masks") for t in targets]
        return PersonCrops(
            images,
            boxes,
            [t.image_size for t in targets],
            [t.gt_masks.tensor if m else None for t, m in zip(targets, masked, strict=True)],
            self.background,
        )

    def _without_persons(self, images: Tensor, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """Features of no rows, attached to the graph: distributed training needs every parameter in each iteration."""
        dummy = pool_crops(images[:1, :, :32, :32], backbone, res5, self.pooling)
        return PooledFeatures(dummy.res4[:0], dummy.res5[:0])


def pool_crops(crops: Tensor, backbone: nn.Module, res5: nn.Module, pooling: GlobalPooling) -> PooledFeatures:
    """Pooled features of crops (P, C, h, w) of equal size."""
    features = backbone(crops)["res4"]
    return PooledFeatures(pooling(features), pooling(res5(features)))
