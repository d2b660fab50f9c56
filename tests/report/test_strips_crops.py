"""Crops: which pixels of a frame they show, and where the box lies in them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.report.strips import crop_box

FRAME = (120, 200)  # height, width


@given(
    st.floats(-10, 190),
    st.floats(-10, 110),
    st.floats(8, 120),
    st.floats(8, 90),
    st.sampled_from([(200, 100), (60, 90)]),
)
@settings(max_examples=60)
def test_the_box_in_the_crop_holds_the_pixels_of_the_box(x0, y0, width, height, cell):
    box = np.round([x0, y0, x0 + width, y0 + height])
    frame = np.full((*FRAME, 3), 10, np.uint8)
    a, b, c, d = np.clip(box, 0, [FRAME[1], FRAME[0]] * 2).astype(int)
    frame[b:d, a:c] = (10, 220, 10)
    crop, moved = crop_box(frame, box, *cell)
    assert crop.shape == (*cell, 3)
    scale = (moved[2] - moved[0]) / (box[2] - box[0])
    assert (moved[3] - moved[1]) / (box[3] - box[1]) == pytest.approx(scale)
    assert max((moved[2] - moved[0]) / cell[1], (moved[3] - moved[1]) / cell[0]) == pytest.approx(1 / 1.3)
    # Where the frame's box lies in the crop, its color is, and nowhere else; the edges blur over two pixels.
    offset = moved[:2] - scale * box[:2]
    x, y = (np.arange(cell[1]) + 0.5 - offset[0]) / scale, (np.arange(cell[0]) + 0.5 - offset[1]) / scale
    blur = 1 + 2 / scale
    inside = np.outer((y > b + blur) & (y < d - blur), (x > a + blur) & (x < c - blur))
    outside = ~np.outer((y > b - blur) & (y < d + blur), (x > a - blur) & (x < c + blur))
    assert (crop[inside][:, 1] > 180).all()
    assert (np.abs(crop[outside][:, 1].astype(int) - crop[outside][:, 0]) < 60).all()


def test_the_cut_is_moved_into_the_frame():
    frame = np.full((*FRAME, 3), 10, np.uint8)
    crop, box = crop_box(frame, [0, 0, 20, 40], 200, 100)
    assert (crop == 10).all()
    np.testing.assert_allclose(box[:2], 0)
    np.testing.assert_allclose(box[2:], np.array([20, 40]) * 200 / (40 * 1.3))
    crop, _ = crop_box(frame, [0, 0, 200, 120], 200, 100)  # wider than the cell: grey above and below
    assert (crop[:40] == 235).all() and (crop[-40:] == 235).all()
    assert (crop[90:110, 20:80] == 10).all()
