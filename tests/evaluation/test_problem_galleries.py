"""Galleries against plain loops, and what a broken one says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.data.records import Gallery
from person_search.errors import DatasetError
from person_search.evaluation.problem import all_frames_but_own, full_set
from person_search.evaluation.protocols import listed_galleries

frames = st.integers(0, 4)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(frames, st.integers(-2, 3)), max_size=15),
    st.lists(st.tuples(frames, st.integers(0, 4)), min_size=1, max_size=4),
    st.one_of(st.none(), st.lists(st.integers(1, 2), min_size=5, max_size=5)),
)
def test_targets_are_the_first_box_of_the_person_in_every_other_frame(gts, queries, cameras):
    gt_frame, gt_person = np.array(gts, np.int64).reshape(-1, 2).T
    query_frame, query_person = np.array(queries, np.int64).T
    boxes = np.arange(4.0 * len(gts)).reshape(-1, 4)
    camera = None if cameras is None else np.array(cameras)
    galleries = all_frames_but_own(query_frame, query_person, gt_frame, boxes, gt_person, camera)
    galleries.check("all", len(queries), 5)
    assert galleries.excluded_frame.tolist() == query_frame.tolist()
    for query, (own, person) in enumerate(queries):
        expected = {}
        for row, (frame, who) in enumerate(gts):
            if who == person and frame != own and (camera is None or camera[frame] != camera[own]):
                expected.setdefault(frame, boxes[row].tolist())
        rows = slice(galleries.target_offset[query], galleries.target_offset[query + 1])
        found = zip(galleries.target_frame[rows].tolist(), galleries.target_box[rows].tolist(), strict=True)
        assert dict(found) == expected
        assert galleries.target_count[query] == len(expected)


FRAME_OF = {"a": 0, "b": 1, "c": 2}
BOX = (1.0, 2.0, 3.0, 4.0)


def test_a_frame_listed_twice_is_searched_once_and_counts_twice():
    galleries = listed_galleries([Gallery(("b", "c", "b", "c"), {"b": BOX}), Gallery(("a",), {})], FRAME_OF, "test")
    galleries.check("test", 2, 3)
    assert galleries.frame.tolist() == [1, 2, 0]
    assert galleries.frame_offset.tolist() == [0, 2, 3]
    assert galleries.target_frame.tolist() == [1]
    assert galleries.target_box.tolist() == [list(BOX)]
    assert galleries.target_count.tolist() == [2, 0]


def test_unknown_frames_and_boxes_are_named():
    with pytest.raises(DatasetError, match="TestG50.mat: query 1 is searched in frame x, .* 3 frames"):
        listed_galleries([Gallery(("a",), {}), Gallery(("a", "x"), {})], FRAME_OF, "TestG50.mat")
    with pytest.raises(DatasetError, match="query 0 has a box in c"):
        listed_galleries([Gallery(("a",), {"c": BOX})], FRAME_OF, "TestG50.mat")


def test_the_full_set_leaves_out_the_own_frame_unless_the_file_lists_it():
    listed = listed_galleries([Gallery(("b",), {"b": BOX}), Gallery(("a", "b"), {})], FRAME_OF, "test")
    galleries = full_set(np.array([0, 0]), listed)
    galleries.check("full", 2, 3)
    assert galleries.excluded_frame.tolist() == [0, -1]
    assert galleries.target_frame.tolist() == [1]


@pytest.mark.parametrize("change, message", [
    ({"frame": np.array([0, 9])}, "frame runs from 0 to 9; expected 0 to 2"),
    ({"target_frame": np.array([-1])}, "target_frame runs from -1"),
    ({"target_offset": np.array([0, 1])}, "target_offset must ascend from 0 to 1 in 3 entries"),
    ({"frame_offset": np.array([0, 3, 2])}, "frame_offset must ascend"),
    ({"target_count": np.zeros(5, int)}, "target_count"),
    ({"frame": None}, "either frame and frame_offset, or excluded_frame"),
    ({"other_cameras_only": True}, "other_cameras_only"),
    ({"frame": None, "frame_offset": None, "excluded_frame": np.array([0])}, "excluded_frame is"),
])  # fmt: skip
def test_arrays_that_do_not_fit_are_named(change, message):
    galleries = listed_galleries([Gallery(("b",), {"b": BOX}), Gallery(("a",), {})], FRAME_OF, "test")
    with pytest.raises(DatasetError, match=message):
        replace(galleries, **change).check("50", 2, 3)
