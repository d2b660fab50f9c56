"""Cleaning of boxes, checks of frames and queries, and the choice of queries."""

from __future__ import annotations

import logging

import pytest
from detectron2.structures import BoxMode
from hypothesis import given
from hypothesis import strategies as st
from person_search.data.catalog import require_file, require_folder
from person_search.data.records import (
    Frame,
    Person,
    Query,
    SearchProtocol,
    build_records,
    check_queries,
    clip_box,
    spread_queries,
)
from person_search.errors import DatasetError

coordinate = st.floats(-50, 250, allow_nan=False)
boxes = st.tuples(coordinate, coordinate, coordinate, coordinate)
# In the frame, over its left edge, or without sides.
plausible = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h), st.floats(-9, 90), st.floats(0, 40), st.floats(-40, 90), st.floats(-30, 60)
)


def frame(image_id, *persons, camera_id=None, height=100, width=200):
    return Frame(f"/data/{image_id}", image_id, height, width, persons, camera_id)


@given(boxes)
def test_clipped_box_is_the_overlap_with_the_frame(bbox):
    clipped = clip_box(bbox, 100, 200)
    width = min(bbox[2], 200) - max(bbox[0], 0)
    height = min(bbox[3], 100) - max(bbox[1], 0)
    if width < 1 or height < 1:
        assert clipped is None
    else:
        assert clipped == (max(bbox[0], 0), max(bbox[1], 0), min(bbox[2], 200), min(bbox[3], 100))
        assert clip_box(clipped, 100, 200) == clipped


@pytest.mark.parametrize("position", range(4))
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_box_that_is_not_finite_shows_nothing(position, value):
    bbox = [10.0, 10.0, 50.0, 50.0]
    bbox[position] = value
    assert clip_box(tuple(bbox), 100, 200) is None


def test_records_have_detectron2s_form_and_ours():
    mask = {"size": [100, 200], "counts": b"0"}
    records = build_records(
        "d", [frame("a", Person((1, 2, 30, 40), 7, mask), Person((5, 5, 9, 9), -2), camera_id=3), frame("b")]
    )
    assert records == [
        {
            "file_name": "/data/a",
            "image_id": "a",
            "height": 100,
            "width": 200,
            "camera_id": 3,
            "annotations": [
                {
                    "bbox": [1.0, 2.0, 30.0, 40.0],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                    "person_id": 7,
                    "instance_index": 0,
                    "segmentation": mask,
                },
                {
                    "bbox": [5.0, 5.0, 9.0, 9.0],
                    "bbox_mode": BoxMode.XYXY_ABS,
                    "category_id": 0,
                    "iscrowd": 0,
                    "person_id": -1,
                    "instance_index": 1,
                },
            ],
        },
        {"file_name": "/data/b", "image_id": "b", "height": 100, "width": 200, "annotations": []},
    ]
    assert all(type(value) is float for value in records[0]["annotations"][0]["bbox"])


@given(st.lists(st.lists(plausible, max_size=4), min_size=1, max_size=5))
def test_bank_rows_run_over_what_is_kept(of_frames):
    frames = [frame(str(i), *map(Person, of_frame)) for i, of_frame in enumerate(of_frames)]
    records = build_records("d", frames)
    rows = [annotation["instance_index"] for record in records for annotation in record["annotations"]]
    kept = [clip_box(bbox, 100, 200) for of_frame in of_frames for bbox in of_frame]
    assert rows == list(range(sum(bbox is not None for bbox in kept)))
    found = [tuple(annotation["bbox"]) for record in records for annotation in record["annotations"]]
    assert found == [bbox for bbox in kept if bbox is not None]


def test_dropped_and_clipped_boxes_are_counted_in_one_line_however_often_a_set_is_read(caplog):
    empty, outside = Person((5, 5, 5, 45)), Person((300, 10, 340, 50))
    over_the_edge, inside = Person((-4, 10, 20, 50)), Person((10, 10, 20, 50))
    with caplog.at_level(logging.INFO, logger="person_search"):
        for _ in range(3):
            build_records("d", [frame("a", empty, inside), frame("b", outside, over_the_edge)])
    assert [record.getMessage() for record in caplog.records] == [
        "d: dropped 2 boxes that are empty or outside their frame (for example "
        "box 0 of a: [5.0, 5.0, 5.0, 45.0]; box 0 of b: [300.0, 10.0, 340.0, 50.0]), clipped 1 boxes to their frame",
    ]


def test_clean_boxes_leave_the_log_alone(caplog):
    with caplog.at_level(logging.INFO, logger="person_search"):
        build_records("d", [frame("a", Person((0, 0, 200, 100)))])
    assert not caplog.records


@pytest.mark.parametrize("bbox", [(5, 5, 5, 45), (20, 5, 10, 45), (-30, 5, -10, 45), (0, 0, 0.5, 45)])
def test_strict_names_the_bad_box(bbox):
    with pytest.raises(DatasetError, match=r"d: box 1 of a: .* is empty or outside the frame of 200 x 100"):
        build_records("d", [frame("a", Person((1, 1, 9, 9)), Person(bbox))], strict=True)


def test_strict_still_clips():
    records = build_records("d", [frame("a", Person((-4, 10, 20, 50)))], strict=True)
    assert records[0]["annotations"][0]["bbox"] == [0.0, 10.0, 20.0, 50.0]


def test_frames_of_one_name_are_an_error():
    twin = Frame("/other/a", "a", 100, 200)
    with pytest.raises(DatasetError, match=r"d: two frames are named 'a' \(/data/a and /other/a\)"):
        build_records("d", [frame("a"), frame("b"), twin])


def test_no_frame_and_no_size_are_errors():
    with pytest.raises(DatasetError, match="d: has no frame"):
        build_records("d", [])
    with pytest.raises(DatasetError, match="d: frame 'a' has the size 0 x 100"):
        build_records("d", [frame("a", width=0)])


def test_query_in_an_unknown_frame_is_named():
    protocol = SearchProtocol("custom", (Query("a", (0, 0, 9, 9), 1), Query("z", (0, 0, 9, 9), 5)))
    with pytest.raises(DatasetError, match=r"d: query 1 \(person 5\) lies in the frame 'z', .* the 2 frames"):
        check_queries("d", protocol, ["a", "b"])
    assert check_queries("d", protocol, ["a", "z"]) is protocol


def test_protocol_without_query_is_an_error():
    with pytest.raises(DatasetError, match="d: has no queries"):
        check_queries("d", SearchProtocol("custom", ()), ["a"])


def test_missing_files_are_explained(tmp_path):
    with pytest.raises(DatasetError, match="d: the folder .*nowhere is missing.*trees.*DETECTRON2_DATASETS"):
        require_folder("d", tmp_path / "nowhere", "trees")
    with pytest.raises(DatasetError, match="d: the file .*nothing.txt is missing.*notes.*DETECTRON2_DATASETS"):
        require_file("d", tmp_path / "nothing.txt", "notes")
    (tmp_path / "x").touch()
    require_file("d", tmp_path / "x", "notes")
    require_folder("d", tmp_path, "trees")


def test_queries_are_the_middles_of_equal_runs():
    person = Person((0, 0, 10, 10), 4)
    records = build_records("d", [frame(f"{i:02}", person) for i in range(9)])
    assert [q.image_id for q in spread_queries(records, 1)] == ["04"]
    assert [q.image_id for q in spread_queries(records, 3)] == ["01", "04", "07"]
    assert [q.image_id for q in spread_queries(records, 20)] == [f"{i:02}" for i in range(9)]


@given(
    st.lists(
        st.tuples(st.sampled_from([None, 1, 2]), st.lists(st.integers(-1, 3), max_size=4)), min_size=1, max_size=12
    ),
    st.integers(1, 4),
)
def test_chosen_queries_follow_the_rule(content, per_identity):
    records = build_records(
        "d",
        [
            frame(str(i), *[Person((j, 0, j + 9, 9), pid) for j, pid in enumerate(pids)], camera_id=camera)
            for i, (camera, pids) in enumerate(content)
        ],
    )
    queries = spread_queries(records, per_identity)
    assert len({(q.image_id, q.person_id) for q in queries}) == len(queries)
    for identity in range(4):
        shown = [i for i, (_, pids) in enumerate(content) if identity in pids]
        of_identity = [q for q in queries if q.person_id == identity]
        if len(shown) < 2:
            assert not of_identity
            continue
        for camera in (None, 1, 2):
            frames = [i for i in shown if content[i][0] == camera]
            of_camera = [q for q in of_identity if int(q.image_id) in frames]
            assert len(of_camera) == min(per_identity, len(frames))
            for query in of_camera:
                first = content[int(query.image_id)][1].index(identity)
                assert query.bbox == (first, 0, first + 9, 9)
    assert all(q.person_id >= 0 for q in queries)


def test_a_frame_of_unknown_size_reaches_as_far_as_its_boxes(caplog):
    persons = (Person((-3, 1, 20.5, 30)), Person((5, 5, 12, 44.2)), Person((float("nan"), 0, 9, 9)))
    records = build_records("d", [Frame("/data/a", "a", None, None, persons), Frame("/data/b", "b", None, None)])
    assert [(r["height"], r["width"]) for r in records] == [(45, 21), (1, 1)]
    assert [a["bbox"] for a in records[0]["annotations"]] == [[0, 1, 20.5, 30], [5, 5, 12, 44.2]]
    assert "d: 2 images cannot be read (for example /data/a): training skips them, evaluation" in caplog.text
