"""Oversampled drawing surface, and sprites with transparency made from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .looks import Color

_SHIFT = 3  # outlines have a precision of an eighth of a canvas pixel
_HALF_CIRCLE = np.stack([np.cos(np.linspace(0, np.pi, 9)), np.sin(np.linspace(0, np.pi, 9))], 1)


@dataclass(frozen=True)
class Sprite:
    """Cut-out to be placed in a frame.

    Attributes:
        rgb: (h, w, 3) float32, 0..255, premultiplied by alpha.
        alpha: (h, w) float32 coverage, 0..1.
        anchor: (x, y) of the object's point on the ground, in pixels of the sprite.
    """

    rgb: np.ndarray
    alpha: np.ndarray
    anchor: tuple[int, int]

    @property
    def solid(self) -> np.ndarray:
        """Mask of the object, (h, w) bool: pixels that it covers by half or more."""
        return self.alpha >= 0.5


class Canvas:
    """Drawing surface in metres, upwards and to the right of the point where the object stands.

    Args:
        reach: (left, right, up, down) extent around that point in metres.
        scale: final pixels per metre.
        fine: canvas pixels per final pixel, >= 1.
        light: direction of the light, -1 (from the left) .. 1 (from the right).
    """

    def __init__(self, reach: tuple[float, float, float, float], scale: float, fine: int, light: float = 0.0) -> None:
        left, right, up, down = (int(np.ceil(metres * scale)) + 1 for metres in reach)
        self.anchor = (left, up)
        self.light = light
        self._fine = fine
        self._per_metre = scale * fine
        self.rgb = np.zeros(((up + down) * fine, (left + right) * fine, 3), np.uint8)
        self.alpha = np.zeros(self.rgb.shape[:2], np.uint8)

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Canvas pixels (x, y), (n, 2) float64, of points (right, up) in metres, (n, 2)."""
        anchor = np.array(self.anchor) * self._fine
        return np.asarray(points, dtype=np.float64) * [self._per_metre, -self._per_metre] + anchor

    def fill(self, outline: np.ndarray, color: Color) -> None:
        """Fills a polygon, (n, 2) metres, with one color."""
        fixed = np.round(self.pixels(outline) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(self.rgb, [fixed], [int(c) for c in color], cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.alpha, [fixed], 255, cv2.LINE_8, _SHIFT)

    def paint(self, texture: np.ndarray, corners: np.ndarray, outline: np.ndarray) -> None:
        """Fills a polygon, (n, 2) metres, with a texture (h, w, 3) uint8.

        `corners` is the position of the texture's corners, (4, 2) metres: upper left, upper right, lower right, lower
        left.
        """
        target, polygon = self.pixels(corners), self.pixels(outline)
        height, width = self.alpha.shape
        low = np.clip(np.floor(polygon.min(0)).astype(int), 0, [width, height])
        high = np.clip(np.ceil(polygon.max(0)).astype(int) + 1, 0, [width, height])
        if (high <= low).any():
            return
        window = (slice(low[1], high[1]), slice(low[0], high[0]))
        size = (int(high[0] - low[0]), int(high[1] - low[1]))
        rows, columns = texture.shape[:2]
        source = np.array([[0, 0], [columns - 1, 0], [columns - 1, rows - 1], [0, rows - 1]], np.float32)
        transform = cv2.getPerspectiveTransform(source, (target - low).astype(np.float32))
        warped = cv2.warpPerspective(texture, transform, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        inside = np.zeros((size[1], size[0]), np.uint8)
        cv2.fillPoly(inside, [np.round((polygon - low) * (1 << _SHIFT)).astype(np.int32)], 255, cv2.LINE_8, _SHIFT)
        cv2.copyTo(warped, inside, self.rgb[window])
        self.alpha[window] |= inside

    def limb(self, start: np.ndarray, end: np.ndarray, radii: tuple[float, float], rows: np.ndarray) -> None:
        """Draws a round limb from `start` to `end` (metres) with a radius at each end; `rows` (n, 3) are colors."""
        axis = np.asarray(end, dtype=np.float64) - start
        length = float(np.hypot(*axis))
        # Seen end on, a limb has no direction: use any.
        along = axis / length if length > 1e-6 else np.array([0.0, -1.0])
        across = np.array([-along[1], along[0]])
        # With `along` pointing down, `across` points to the right.
        first, last = start - along * radii[0], end + along * radii[1]
        aside = across * max(radii)
        corners = np.array([first - aside, first + aside, last + aside, last - aside])
        head = start + radii[0] * (across * _HALF_CIRCLE[:, :1] - along * _HALF_CIRCLE[:, 1:])
        foot = end + radii[1] * (along * _HALF_CIRCLE[:, 1:] - across * _HALF_CIRCLE[:, :1])
        self.paint(shaded(rows, self.light), corners, np.concatenate([head, foot]))

    def sprite(self) -> Sprite:
        """Finished sprite at its final resolution."""
        height, width = (n // self._fine for n in self.alpha.shape)
        rgb = cv2.resize(self.rgb, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
        alpha = cv2.resize(self.alpha, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        return Sprite(rgb, alpha, self.anchor)


def plain(color: Color, rows: int) -> np.ndarray:
    """Rows of one color, (rows, 3) float32."""
    return np.tile(np.asarray(color, np.float32), (rows, 1))


def shaded(rows: np.ndarray, light: float, columns: int = 16) -> np.ndarray:
    """Texture of a round surface: (n, 3) colors -> (n, columns, 3) uint8, brightest in the middle and towards the
    light."""
    return np.clip(rows[:, None, :] * shading(columns, light)[None, :, None], 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def shading(columns: int, light: float) -> np.ndarray:
    """Brightness across a cylinder, (columns,) float32, 0.6 .. 1.2."""
    across = np.linspace(-1, 1, columns, dtype=np.float32)
    return 0.74 + 0.28 * np.sqrt(1 - 0.95 * across**2) + 0.16 * light * across
