"""Crops of persons out of their frames, in the proportions of the cell in which they are shown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

ReadFrame = Callable[[str], np.ndarray]
"""Gives a frame, uint8 (H, W, 3) RGB, by its name."""

_PADDING = 235  # grey level beyond a frame's edge
_CONTEXT = 1.3  # a crop shows this many times the box's height, or width where that is what limits it


def crop_box(frame: np.ndarray, box: Sequence[float], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out a box with some context, in the proportions of a cell, and scales it to the cell's size.

    The cut is moved into the frame as far as possible; what still lies beyond its edge is light grey.

    Args:
        frame: (H, W, 3) uint8.
        box: (x0, y0, x1, y1) in pixels of the frame.
        height, width: of the cell, in pixels.

    Returns:
        The cell (height, width, 3) uint8, and the box (4,) in its pixels.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    scale = min(height / max(y1 - y0, 1.0), width / max(x1 - x0, 1.0)) / _CONTEXT
    cut_width, cut_height = width / scale, height / scale
    left = _moved_inside((x0 + x1 - cut_width) / 2, cut_width, frame.shape[1])
    top = _moved_inside((y0 + y1 - cut_height) / 2, cut_height, frame.shape[0])
    # Only what is cut, and the pixels around that smoothing looks at: frames are large and crops are many.
    margin = int(2 / scale) + 2
    x, y = max(int(left) - margin, 0), max(int(top) - margin, 0)
    part = frame[y : int(top + cut_height) + margin, x : int(left + cut_width) + margin]
    # Between pixel centres, where warpAffine counts, and pixel edges, where boxes do, lies half a pixel.
    half = 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, half - (left - x) * scale], [0, scale, half - (top - y) * scale]])
    # Repeated and then painted over, so that the frame's last pixels do not blend with the grey beyond.
    cell = cv2.warpAffine(_smoothed(part, scale), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    column, row = left + (np.arange(width) + 0.5) / scale, top + (np.arange(height) + 0.5) / scale
    cell[:, (column < 0) | (column > frame.shape[1])] = _PADDING
    cell[(row < 0) | (row > frame.shape[0])] = _PADDING
    return cell, (np.array([x0, y0, x1, y1]) - [left, top, left, top]) * scale


def _moved_inside(start: float, length: float, size: int) -> float:
    return (size - length) / 2 if length >= size else min(max(start, 0.0), size - length)


def _smoothed(frame: np.ndarray, scale: float) -> np.ndarray:
    # Bilinear sampling alone would skip pixels of persons that are larger than the cell.
    return cv2.GaussianBlur(frame, (0, 0), 0.4 / scale) if scale < 0.7 else frame
