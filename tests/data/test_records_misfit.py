"""Boxes that do not fit their frames are told from persons at the edge."""

from __future__ import annotations

import numpy as np
import pytest
from person_search.data.coco_json import load_coco_json
from person_search.data.records import Frame, Person, build_records, misfit
from person_search.errors import DatasetError

FRAME = (480, 640)


def scattered(count=200, seed=0, amodal=False):
    """Boxes (x0, y0, x1, y1) of persons within a frame; amodal: those at the edge go on outside."""
    rng = np.random.default_rng(seed)
    sides = np.stack([rng.uniform(20, 60, count), rng.uniform(60, 150, count)], axis=1)
    centres = rng.uniform(0, 1, (count, 2)) * FRAME[::-1]
    boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return boxes if amodal else boxes.clip(0, [*FRAME[::-1]] * 2)


def cause(boxes, frame=FRAME):
    return misfit(boxes.tolist(), [frame] * len(boxes))


@pytest.mark.parametrize("amodal", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_persons_at_the_edge_fit(amodal, seed):
    assert cause(scattered(seed=seed, amodal=amodal)) is None


def test_frames_that_were_made_smaller():
    for factor in (0.5, 0.8):
        frame = tuple(int(side * factor) for side in FRAME)
        assert "downscaled after annotation" in cause(scattered(), frame)
        assert f"frame of {frame[1]} x {frame[0]} pixels" in cause(scattered(), frame)


def test_corners_written_as_sizes():
    boxes = scattered()
    boxes[:, 2:] += boxes[:, :2]
    assert "look like corners [x0, y0, x1, y1]" in cause(boxes)


def test_shares_of_the_frame():
    assert "look like fractions of the frame" in cause(scattered() / [*FRAME[::-1], *FRAME[::-1]])


def test_boxes_of_other_frames():
    boxes = scattered(amodal=True) + [0, 400, 0, 400]
    boxes[0] = [-40, 10, 20, 90]
    assert "boxes of other frames" in cause(boxes)


def test_a_small_share_is_left_to_clipping():
    boxes = scattered()
    boxes[:8] += [700, 0, 700, 0]
    assert cause(boxes) is None
    boxes[8:14] += [700, 0, 700, 0]
    assert "14 of 200" in cause(boxes)
    assert cause(boxes[:2]) is None


def test_boxes_without_sides_are_not_judged():
    boxes = scattered()
    boxes[:50, 2] = boxes[:50, 0]
    boxes[50] = np.nan
    assert cause(boxes) is None
    assert misfit([], []) is None


def test_records_are_refused_with_the_name_of_the_set():
    boxes = scattered()
    frames = [Frame(f"/{i}.jpg", f"{i}.jpg", 240, 320, [Person(tuple(box))]) for i, box in enumerate(boxes)]
    with pytest.raises(DatasetError, match="^mall: .* boxes lie outside their frames .*use the frames"):
        build_records("mall", frames)


def test_the_published_annotations_fit(shared):
    folder = shared / "data" / "prw"
    assert load_coco_json("d", folder / "annotations_json" / "train_pid.json", folder / "frames")
