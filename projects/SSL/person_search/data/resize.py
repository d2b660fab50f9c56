"""Resizing as torchvision's detectors do it: bilinear on floats, without the low-pass filter that Pillow applies."""

from __future__ import annotations

import math

import numpy as np
from detectron2.data import transforms as T
from PIL import Image


class InterpolatedResizeTransform(T.ResizeTransform):
    """Resizes an image to float32 by plain bilinear interpolation; masks and boxes as `ResizeTransform` does."""

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """(H, W, C) or (H, W) -> float32 of the new size; with another interpolation than bilinear the type stays."""
        if interp not in (None, Image.BILINEAR):
            return super().apply_image(img, interp)
        return super().apply_image(img.astype(np.float32), Image.BILINEAR)  # it takes uint8 to Pillow, float to torch


class InterpolatedResize(T.ResizeShortestEdge):
    """`ResizeShortestEdge` with torchvision's interpolation and its sizes, which are rounded down."""

    @classmethod
    def like(cls, other: T.ResizeShortestEdge) -> InterpolatedResize:
        """One with the lengths of another."""
        return cls(other.short_edge_length, other.max_size, "range" if other.is_range else "choice")

    def get_transform(self, image: np.ndarray) -> T.Transform:
        """The transform of an image (H, W, C); a shorter side of 0 leaves it as it is."""
        low, high = self.short_edge_length[0], self.short_edge_length[-1]
        shorter = np.random.randint(low, high + 1) if self.is_range else np.random.choice(self.short_edge_length)
        if shorter == 0:
            return T.NoOpTransform()
        height, width = image.shape[:2]
        scale = min(float(shorter) / min(height, width), float(self.max_size) / max(height, width))
        return InterpolatedResizeTransform(height, width, math.floor(height * scale), math.floor(width * scale))
