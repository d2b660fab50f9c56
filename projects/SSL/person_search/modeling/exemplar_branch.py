"""Multi-scale exemplars: each annotated person cropped, cut out of the background and resized (paper Eq. 1)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .crops import PersonCrops
from .embedding import PooledFeatures
from .padded_batch import (
    PASS_COST_GPU,
    ValidArea,
    canvas_size,
    group_by_size,
    looks_at_other_pixels,
    padded_with_zeros,
    pool_maximum,
)


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
        self, images: Tensor, targets: Sequence[Instances], backbone: nn.Module, res5: nn.Module
    ) -> PooledFeatures:
        """
        Args:
            images: (B, C, H, W) normalised and padded.
            targets: B ground truths with `gt_boxes` and maybe `gt_masks`.
            backbone: the main branch's stem to res4, returning {"res4": features}.
            res5: the second head's res5.

        Returns:
            Features of P * S exemplars, P over all images and S = `per_person`: person by person, the fixed scales in
            their order first, the original scale last.
        """
        if self.separate is not None:
            backbone, res5 = self.separate["backbone"], self.separate["res5"]
        with running_statistics(backbone), running_statistics(res5):
            crops = self._crops(images, targets)
            if not len(crops):
                return self._without_persons(images, backbone, res5)
            sizes = [size for own in crops.sizes for size in (*self.scales, *([own] if self.original else []))]
            groups = group_by_size(sizes, _pass_cost(images.device, [backbone, res5]))
            parts, order = [], []
            for group in groups:
                exemplars, members = self._exemplars(crops, group, [sizes[i] for i in group])
                parts.append(pool_padded(exemplars, [sizes[i] for i in members], backbone, res5))
                order += members
        joined = PooledFeatures.cat(parts)
        place = torch.tensor(order).argsort().to(images.device)
        return PooledFeatures(joined.res4[place], joined.res5[place])

    def _exemplars(
        self, crops: PersonCrops, group: Sequence[int], sizes: Sequence[tuple[int, int]]
    ) -> tuple[Tensor, list[int]]:
        """Some exemplars (n, C, H, W), each in the top left corner of a canvas that holds their sizes, and which of all
        exemplars they are. Of a fixed scale there are those of all persons or of none."""
        height, width = sizes[0] if len(set(sizes)) == 1 else canvas_size(sizes)
        kinds = [[i for i in group if i % self.per_person == kind] for kind in range(self.per_person)]
        parts = []
        for size, members in zip(self.scales, kinds):
            if members:
                parts.append(F.pad(crops.resized(size), (0, width - size[1], 0, height - size[0])))
        if self.original and kinds[-1]:
            parts.append(crops.cut([i // self.per_person for i in kinds[-1]], (height, width)))
        return torch.cat(parts), [i for members in kinds for i in members]

    def _crops(self, images: Tensor, targets: Sequence[Instances]) -> PersonCrops:
        masked = [self.mask_background and t.has("gt_masks") for t in targets]
        return PersonCrops(
            images,
            [t.gt_boxes.tensor for t in targets],
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


def pool_padded(
    canvas: Tensor, sizes: Sequence[tuple[int, int]], backbone: nn.Module, res5: nn.Module
) -> PooledFeatures:
    """Features of crops of different sizes in one pass; each as if it had passed alone.

    Args:
        canvas: (n, C, H, W) with a crop in the top left corner of each.
        sizes: (height, width) of the n crops.
        backbone, res5: see `ExemplarBranch.forward`.
    """
    if set(sizes) == {tuple(canvas.shape[2:])}:
        return pool_crops(canvas, backbone, res5)
    valid = ValidArea(sizes, canvas)
    with padded_with_zeros([backbone, res5], valid):
        features = backbone(canvas)["res4"]
        return PooledFeatures(pool_maximum(features, valid), pool_maximum(res5(features), valid))


def _pass_cost(device: torch.device, modules: Sequence[nn.Module]) -> float:
    """See `group_by_size`. What normalises over pixels allows no padding."""
    return 0 if device.type == "cpu" or looks_at_other_pixels(modules) else PASS_COST_GPU


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
