"""Multi-scale exemplars: each annotated person cropped, cut out of the background and resized (paper Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .crops import PersonCrops
from .embedding import PooledFeatures
from .mosaic import Mosaic, kept_apart, looks_at_other_pixels


class ExemplarBranch(nn.Module):
    """Features of every annotated person at K fixed scales and at its original scale.

    The layers are the main branch's (`backbone` and the second head's res5) unless `separate` is given.
    """

    def __init__(
        self,
        *,
        scales: Sequence[tuple[int, int]],
        original: bool,
        mask_background: bool,
        separate: nn.ModuleDict | None = None,
    ) -> None:
        """
        Args:
            scales: (height, width) in pixels of the fixed scales.
            original: whether the crop at its own size takes part.
            mask_background: whether crops are multiplied by `gt_masks` where the instances have them.
            separate: an exemplar backbone of its own, with modules "backbone" and "res5".
        """
        super().__init__()
        self.scales = [(int(h), int(w)) for h, w in scales]
        self.original = original
        self.mask_background = mask_background
        self.separate = separate

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
            res5: the second head's res5.

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
            if images.is_cuda and not looks_at_other_pixels([backbone, res5]):
                return self._in_one_pass(crops, backbone, res5)
            return self._size_by_size(crops, backbone, res5)

    def _in_one_pass(self, crops: PersonCrops, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """On a GPU a pass costs what the start of its kernels costs, so one takes all exemplars."""
        exemplars = [crops.resized(size) for size in self.scales]
        if self.original:
            longest = tuple(max(sides) for sides in zip(*crops.sizes, strict=True))
            originals = crops.cut(range(len(crops)), longest)
            exemplars.append(
                [image[:, :height, :width] for image, (height, width) in zip(originals, crops.sizes, strict=True)]
            )
        mosaic = Mosaic([image for person in zip(*exemplars, strict=True) for image in person])
        with kept_apart([backbone, res5], mosaic):
            features = backbone(mosaic.picture)["res4"]
            return PooledFeatures(mosaic.pool_maximum(features), mosaic.pool_maximum(res5(features)))

    def _size_by_size(self, crops: PersonCrops, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """On a CPU the pixels alone count, and these are the fewest."""
        by_scale = [pool_crops(crops.resized(size), backbone, res5) for size in self.scales]
        if self.original:
            alone = [pool_crops(crops.cut([i], size), backbone, res5) for i, size in enumerate(crops.sizes)]
            by_scale.append(PooledFeatures.cat(alone))
        return PooledFeatures(
            *(torch.stack(parts, dim=1).flatten(0, 1) for parts in zip(*by_scale, strict=True))  # (P, S, C)
        )

    def _crops(self, images: Tensor, targets: Sequence[Instances], boxes: Sequence[Tensor]) -> PersonCrops:
        masked = [self.mask_background and t.has("gt_masks") for t in targets]
        return PersonCrops(
            images,
            boxes,
            [t.image_size for t in targets],
            [t.gt_masks.tensor if m else None for t, m in zip(targets, masked, strict=True)],
        )

    def _without_persons(self, images: Tensor, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
        """No rows, but joined to the graph: with several processes each must use every parameter in each iteration."""
        dummy = pool_crops(images[:1, :, :32, :32], backbone, res5)
        return PooledFeatures(dummy.res4[:0], dummy.res5[:0])


def pool_crops(crops: Tensor, backbone: nn.Module, res5: nn.Module) -> PooledFeatures:
    """Features of crops (P, C, h, w) of one size."""
    features = backbone(crops)["res4"]
    return PooledFeatures(features.amax(dim=(2, 3)), res5(features).amax(dim=(2, 3)))


@contextmanager
def running_statistics(module: nn.Module):
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
