"""Tracklets: who walks on keeps a number, from the first frame on, and a later run continues an earlier one."""

from __future__ import annotations

import numpy as np
from person_search.search.tracklets import TrackletNumbers


def walkers(frame: int, gone: tuple[int, ...] = ()) -> np.ndarray:
    """Boxes of three people who walk apart from each other, without those who are gone."""
    lefts = [10 + 6 * frame, 200 + 2 * frame, 400 - 8 * frame]
    return np.array([[x, 50.0, x + 30, 140] for i, x in enumerate(lefts) if i not in gone], np.float32)


def scores(boxes: np.ndarray) -> np.ndarray:
    return np.full(len(boxes), 0.9, np.float32)


def test_each_walker_keeps_a_number_from_the_first_frame_on():
    numbers = TrackletNumbers(0.5)
    found = [numbers.update(0.5 * f, walkers(f), scores(walkers(f))) for f in range(12)]
    assert all(sorted(n.tolist()) == [0, 1, 2] for n in found)
    assert all((n == found[0]).all() for n in found)


def test_who_is_hidden_for_a_moment_keeps_the_number():
    numbers = TrackletNumbers(0.5)
    for frame in range(12):
        boxes = walkers(frame, gone=(1,) if frame in (5, 6) else ())
        found = numbers.update(0.5 * frame, boxes, scores(boxes))
    assert found.tolist() == [0, 1, 2]


def test_who_comes_later_and_who_is_seen_once_get_numbers_of_their_own():
    numbers = TrackletNumbers(0.5)
    numbers.update(0.0, walkers(0, gone=(2,)), scores(walkers(0, gone=(2,))))
    once = np.array([[600, 50, 630, 140]], np.float32)
    boxes = np.concatenate([walkers(1, gone=(2,)), once])
    assert numbers.update(0.5, boxes, scores(boxes)).tolist() == [0, 1, 2]
    assert numbers.update(1.0, walkers(2), scores(walkers(2))).tolist() == [0, 1, 3]
    assert numbers.update(1.5, np.zeros((0, 4), np.float32), np.zeros(0, np.float32)).size == 0
    assert numbers.update(2.0, walkers(4), scores(walkers(4))).tolist() == [0, 1, 3]


def test_who_walks_out_of_the_box_before_keeps_the_number():
    numbers = TrackletNumbers(0.5)
    lefts = [(100 + 35 * frame, 700 - 45 * frame) for frame in range(6)]  # boxes of a width of 30
    frames = [np.array([[x, 50.0, x + 30, 140] for x in pair], np.float32) for pair in lefts]
    assert [numbers.update(0.5 * f, boxes, scores(boxes)).tolist() for f, boxes in enumerate(frames)] == [[0, 1]] * 6


def test_a_new_instance_that_is_shown_the_same_boxes_continues_alike():
    rng = np.random.default_rng(0)
    frames = []
    for frame in range(40):
        keep = tuple(np.flatnonzero(rng.random(3) < 0.25).tolist())
        boxes = walkers(frame, gone=keep) + rng.normal(size=(3 - len(keep), 4)).astype(np.float32)
        if len(boxes):
            frames.append((0.5 * frame, boxes, scores(boxes)))
    whole = TrackletNumbers(0.5)
    expected = [whole.update(*frame).tolist() for frame in frames]
    for cut in (1, 9, 25):
        again = TrackletNumbers(0.5)
        assert [again.update(*frame).tolist() for frame in frames[:cut]] == expected[:cut]
        assert [again.update(*frame).tolist() for frame in frames[cut:]] == expected[cut:]
