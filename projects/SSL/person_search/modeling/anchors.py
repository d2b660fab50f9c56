"""Anchors whose corners are whole pixels, as torchvision makes them."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY, DefaultAnchorGenerator
from torch import Tensor


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Detectron2's anchors, in its order, with the corners rounded around the centre. SeqNet was trained with these."""

    def generate_cell_anchors(
        self, sizes: Sequence[float] = (32, 64, 128, 256, 512), aspect_ratios: Sequence[float] = (0.5, 1, 2)
    ) -> Tensor:
        """(len(sizes) * len(aspect_ratios), 4) xyxy in whole pixels around (0, 0): size by size, ratio by ratio."""
        return super().generate_cell_anchors(sizes, aspect_ratios).round()
