"""Boxes that do not fit their frames, and what is the likely cause."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FEW = 0.05  # share of the boxes that may misfit: annotators' slips, and persons at the edge who are drawn whole
FEWEST = 3  # boxes: fewer prove nothing
_REACHES_OUT = 0.1  # share of a box's area outside the frame from which on it reaches out
_SLIP = 1.0  # pixels


def misfit(boxes: Sequence[Sequence[float]], frames: Sequence[Sequence[int]]) -> str | None:
    """The likely cause of boxes that do not fit their frames, or None where no more than a few misfit.

    Persons at the edge whose boxes go on outside are common in some data sets, to the left as to the right. Not common
    are boxes that lie mostly outside, or that reach out on the right and never on the left.

    Args:
        boxes: A boxes (x0, y0, x1, y1) in pixels; those without sides or not finite are not looked at.
        frames: (height, width) of the frame of each.

    Returns:
        What is wrong, what it looks like and what to do, in one line.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    sizes = np.asarray(frames, dtype=np.float64).reshape(-1, 2)[:, ::-1]  # (width, height)
    sides = corners[:, 2:] - corners[:, :2]
    usable = np.isfinite(corners).all(axis=1) & (sides > 0).all(axis=1)
    corners, sizes, sides = corners[usable], sizes[usable], sides[usable]
    if len(corners) < FEWEST:
        return None
    if (corners[:, 2:] <= 1.0 + 1e-6).all():
        return (
            "all boxes lie within the first pixel of their frames: their coordinates look like shares of the frame, "
            "expected are pixels; multiply them by width and height"
        )
    start = corners[:, :2].clip(0, sizes)
    overlap = (corners[:, 2:].clip(0, sizes) - start).clip(0)
    outside = 1 - overlap.prod(axis=1) / sides.prod(axis=1)
    reaching, away = outside > _REACHES_OUT, outside > 0.5
    # Read as (x, y, width, height), a box whose "sides" are themselves corners within the frame.
    as_corners = (sides > corners[:, :2]).all(axis=1) & (sides <= sizes + _SLIP).all(axis=1)
    before = (corners[:, :2] < -_SLIP).any(axis=1)
    to_the_right = reaching & (corners[:, 2] > sizes[:, 0] + _SLIP)
    if _many(reaching) and as_corners.mean() > 1 - FEW:
        return (
            f"{reaching.sum()} of {len(corners)} boxes reach out of their frames, and the third and fourth number of "
            "nearly all are larger than the first and second: they look like corners [x0, y0, x1, y1] where "
            "[x, y, width, height] is expected; subtract"
        )
    if not _many(away) and (before.any() or not _many(to_the_right)):
        return None
    largest = int((corners[:, 2:] / sizes).max(axis=1).argmax())
    example = (
        f"one reaches to {corners[largest, 2]:.0f}, {corners[largest, 3]:.0f} in a frame of "
        f"{sizes[largest, 0]:.0f} x {sizes[largest, 1]:.0f} pixels"
    )
    count = int((away | to_the_right).sum())
    if not before.any():
        return (
            f"{count} of {len(corners)} boxes lie outside their frames ({example}): it looks as if the frames were "
            "made smaller after they were annotated; use the frames that the annotations were made on"
        )
    return (
        f"{count} of {len(corners)} boxes lie mostly outside their frames ({example}): they look like boxes of other "
        "frames; check which frames they belong to, or clip them if they are right"
    )


def _many(boxes: np.ndarray) -> bool:
    return bool(boxes.sum() >= FEWEST and boxes.mean() > FEW)
