"""Controls: what random vectors and color histograms find, and galleries without a query's neighbors."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from person_search.data.mot import load_mot
from person_search.errors import ConfigError, DatasetError
from person_search.evaluation.controls import (
    HISTOGRAM,
    RANDOM,
    below_histogram,
    color_histograms,
    evaluate_controls,
    histogram_features,
    random_features,
)
from person_search.evaluation.metrics import SearchOptions
from person_search.evaluation.problem import (
    SearchProblem,
    frame_gap_galleries,
    own_frame_galleries,
    with_galleries,
)
from person_search.evaluation.protocols import check_frame_gap


def problem_of(records, every: int = 5, gaps=()) -> SearchProblem:
    """The annotated boxes as gallery, every fifth one in the order of the records as a query."""
    annotations = [(frame, a) for frame, record in enumerate(records) for a in record["annotations"]]
    frame = np.array([f for f, _ in annotations])
    box = np.array([a["bbox"] for _, a in annotations], np.float64).reshape(-1, 4)
    person = np.array([a["person_id"] for _, a in annotations])
    feature = np.eye(len(box), 4, dtype=np.float32) + 1
    problem = SearchProblem(
        det_frame=frame, det_box=box, det_score=np.ones(len(box)), det_feature=feature,
        frame_name=tuple(r["image_id"] for r in records), gt_frame=frame, gt_box=box, gt_person_id=person,
        query_frame=frame[::every], query_box=box[::every], query_person_id=person[::every],
        query_feature=feature[::every], frame_camera=np.zeros(len(records), np.int64),
    )  # fmt: skip
    numbers = np.array([r["frame_number"] for r in records])
    galleries = {"all_frames": own_frame_galleries(problem, cross_camera=False)}
    return with_galleries(problem, galleries | {str(g): frame_gap_galleries(problem, numbers, g) for g in gaps})


def test_pets09_is_searched_by_color_as_well_as_was_measured(shared):
    """Figures that were computed apart from this project, with plain cosine and identities in place of boxes."""
    folder = shared / "data/pets09_s2l1"
    records = load_mot("pets", folder / "vtest.avi", folder / "gt_merged.txt", (398, 795, 3), 0)
    capture = cv2.VideoCapture(str(folder / "vtest.avi"))
    frames = [cv2.cvtColor(capture.read()[1], cv2.COLOR_BGR2RGB) for _ in range(795)]
    by_name = {record["image_id"]: frames[record["frame_number"] - 1] for record in records}
    problem = problem_of(records, gaps=(40, 100))
    assert len(problem.det_frame) == 754 and len(problem.query_frame) == 151
    makers = {
        RANDOM: lambda: random_features(problem),
        HISTOGRAM: lambda: histogram_features(problem, by_name.__getitem__),
    }
    results, left_out = evaluate_controls(problem, SearchOptions(), makers)
    assert not left_out
    measured = {"all_frames": (72.3, 98.7), "40": (66.3, 84.8), "100": (65.3, 79.3)}
    for gallery, (mean, top1) in measured.items():
        found = results[HISTOGRAM][gallery]
        assert (100 * found.mAP, 100 * found.top1) == pytest.approx((mean, top1), abs=0.4), gallery
    assert 100 * results[RANDOM]["all_frames"].mAP == pytest.approx(14.4, abs=1.5)


def stripes(top: tuple[int, int, int], bottom: tuple[int, int, int]) -> np.ndarray:
    image = np.zeros((120, 60, 3), np.uint8)
    image[:60], image[60:] = top, bottom
    return image


def test_a_histogram_knows_colors_and_where_they_are():
    red, blue = (200, 20, 20), (20, 20, 200)
    whole = np.array([[0, 0, 60, 120]])
    a, b, turned = (color_histograms(image, whole)[0] for image in (stripes(red, blue),) * 2 + (stripes(blue, red),))
    assert a.shape == (1152,) and np.linalg.norm(a) == pytest.approx(1)
    assert a @ b == pytest.approx(1) and a @ turned == pytest.approx(0)
    # Boxes of fractions, beyond the image, and outside it.
    odd = color_histograms(
        stripes(red, blue), np.array([[-9.6, -3.2, 80.1, 300], [70, 130, 90, 150], [5.4, 5.4, 5.4, 5.4]])
    )
    assert np.linalg.norm(odd, axis=1) == pytest.approx([1, 1, 1]) and odd[0] @ a == pytest.approx(1)


def records_of_a_video(count: int = 12, cameras: int = 1) -> list[dict]:
    return [
        {
            "image_id": f"{camera}-{number}", "camera_id": camera, "frame_number": number,
            "annotations": [
                {"bbox": [10.0 * p, 0.0, 10.0 * p + 8, 20.0], "person_id": p} for p in range(2)
            ],
        }
        for camera in range(cameras) for number in range(1, count + 1)
    ]  # fmt: skip


def test_frames_near_the_query_are_left_out_of_its_own_camera_alone():
    records = records_of_a_video(cameras=2)
    problem = problem_of(records, every=1)
    problem = SearchProblem(**{**vars(problem), "frame_camera": np.repeat([0, 1], 12), "galleries": {}})
    numbers = np.array([r["frame_number"] for r in records])
    far = frame_gap_galleries(problem, numbers, 4)
    for query, own in enumerate(problem.query_frame.tolist()):
        near = {f for f in range(24) if f // 12 == own // 12 and abs(numbers[f] - numbers[own]) < 4}
        listed = far.frame[far.frame_offset[query] : far.frame_offset[query + 1]].tolist()
        targets = far.target_frame[far.target_offset[query] : far.target_offset[query + 1]].tolist()
        assert listed == targets == sorted(set(range(24)) - near)
        assert far.target_count[query] == len(targets)
    # A gap of one frame leaves out the query's own, as ever.
    close, own = frame_gap_galleries(problem, numbers, 1), own_frame_galleries(problem, cross_camera=False)
    np.testing.assert_array_equal(close.target_frame, own.target_frame)


def test_a_gap_that_cannot_be_kept_is_refused():
    from person_search.data.records import SearchProtocol

    records, custom = records_of_a_video(), SearchProtocol("custom", ())
    check_frame_gap(5, records, custom)
    with pytest.raises(ConfigError, match="MIN_FRAME_GAP is -1, expected 0"):
        check_frame_gap(-1, records, custom)
    with pytest.raises(ConfigError, match="the galleries of prw are fixed by its protocol"):
        check_frame_gap(5, records, SearchProtocol("prw", ()))
    del records[3]["frame_number"]
    check_frame_gap(0, records, custom)
    with pytest.raises(ConfigError, match="frame 0-4 has no number in a video"):
        check_frame_gap(5, records, custom)


def test_a_control_without_its_frames_is_left_out_with_the_reason():
    problem = problem_of(records_of_a_video())

    def unreadable(name: str) -> np.ndarray:
        raise DatasetError(f"{name} cannot be read")

    makers = {RANDOM: lambda: random_features(problem), HISTOGRAM: lambda: histogram_features(problem, unreadable)}
    results, left_out = evaluate_controls(problem, SearchOptions(), makers)
    assert list(results) == [RANDOM] and left_out == {HISTOGRAM: "0-1 cannot be read"}


def test_searches_below_the_histogram_are_named():
    figures = {
        "search": {"mAP": 50.0}, "control_color_histogram": {"mAP": 40.0}, "detection": {"AP": 1.0},
        "search_frame_gap_40": {"mAP": 30.0}, "control_color_histogram_frame_gap_40": {"mAP": 35.5},
    }  # fmt: skip
    assert below_histogram(figures) == ["search_frame_gap_40 30.0 < 35.5"]


def test_a_network_that_detects_nothing_has_controls_that_find_nothing():
    problem = problem_of(records_of_a_video())
    nothing = {name: getattr(problem, name)[:0] for name in ("det_frame", "det_box", "det_score", "det_feature")}
    empty = SearchProblem(**{**vars(problem), **nothing})
    image = stripes((200, 20, 20), (20, 20, 200))
    found = histogram_features(empty, lambda name: image)
    assert found.detections.shape == (0, 1152) and len(found.queries) == len(problem.query_frame)
    results, _ = evaluate_controls(empty, SearchOptions(), {HISTOGRAM: lambda: found})
    assert results[HISTOGRAM]["all_frames"].mAP == 0
