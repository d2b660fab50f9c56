"""Problems built from records, protocols and model outputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from person_search.data.records import Gallery, Query, SearchProtocol
from person_search.errors import ConfigError, DatasetError
from person_search.evaluation.metrics import SearchOptions, evaluate_galleries, evaluate_search
from person_search.evaluation.protocols import ImageOutput, build_problem, given_boxes_by_image, query_rows

A, B = (0.0, 0.0, 20.0, 40.0), (100.0, 0.0, 130.0, 80.0)
FEATURES = np.eye(4, dtype=np.float32)


def record(name: str, *persons: tuple, camera: int | None = None) -> dict:
    common = {"bbox_mode": 0, "category_id": 0, "iscrowd": 0}
    annotations = [{"bbox": list(box), "person_id": person, **common} for box, person in persons]
    size = {"height": 90, "width": 160}
    camera_id = {} if camera is None else {"camera_id": camera}
    return {"file_name": f"/x/{name}", "image_id": name, **size, "annotations": annotations, **camera_id}


RECORDS = [
    record("1.jpg", (A, 5), (B, 6), camera=1),
    record("2.jpg", (B, 5), (A, -1), camera=1),
    record("3.jpg", (A, 6), camera=2),
    record("4.jpg", camera=2),
]
QUERIES = (Query("1.jpg", A, 5), Query("3.jpg", A, 6), Query("1.jpg", B, 6))
PRW = SearchProtocol("prw", QUERIES)


def perfect_outputs(gallery: str = "detections", protocol: SearchProtocol = PRW) -> dict[str, ImageOutput]:
    """A model that finds every box, in order, and knows everybody: a person's feature is the unit vector of its id."""
    outputs = {}
    for row in RECORDS:
        persons = [annotation["person_id"] for annotation in row["annotations"]]
        asked = [query.person_id for query in protocol.queries if query.image_id == row["image_id"]]
        asked += persons if gallery == "ground_truth" else []
        outputs[row["image_id"]] = ImageOutput(
            box=np.array([annotation["bbox"] for annotation in row["annotations"]], np.float32).reshape(-1, 4),
            score=np.linspace(0.9, 0.6, len(persons), dtype=np.float32),
            feature=FEATURES[[person % 4 for person in persons]].reshape(-1, 4),
            given_feature=FEATURES[[person % 4 for person in asked]].reshape(-1, 4),
        )
    return outputs


def test_given_boxes_are_the_queries_and_then_the_ground_truth():
    given = given_boxes_by_image(RECORDS, PRW)
    assert {name: boxes.tolist() for name, boxes in given.items()} == {
        "1.jpg": [list(A), list(B)], "2.jpg": [], "3.jpg": [list(A)], "4.jpg": []
    }  # fmt: skip
    assert all(boxes.dtype == np.float32 and boxes.shape[1] == 4 for boxes in given.values())
    assert query_rows(PRW).tolist() == [0, 0, 1]
    given = given_boxes_by_image(RECORDS, PRW, "ground_truth")
    assert given["1.jpg"].tolist() == [list(A), list(B), list(A), list(B)]
    assert given["2.jpg"].tolist() == [list(B), list(A)]


def test_prw_has_all_cameras_and_cross_camera():
    problem = build_problem(RECORDS, PRW, perfect_outputs())
    assert problem.frame_name == ("1.jpg", "2.jpg", "3.jpg", "4.jpg")
    assert problem.gallery_name() == "all_cameras"
    results = evaluate_galleries(problem)
    assert results["all_cameras"].target_count.tolist() == [1, 1, 1]
    assert results["cross_camera"].target_count.tolist() == [0, 1, 1]
    assert results["all_cameras"].mAP == results["cross_camera"].mAP == 1.0
    assert list(build_problem(RECORDS, PRW, perfect_outputs(), cross_camera=False).galleries) == ["all_cameras"]


def test_custom_sets_leave_out_the_own_frame():
    custom = replace(PRW, kind="custom")
    assert list(build_problem(RECORDS, custom, perfect_outputs()).galleries) == ["all_frames"]
    both = build_problem(RECORDS, custom, perfect_outputs(), cross_camera=True)
    assert list(both.galleries) == ["all_frames", "cross_camera"]
    cameraless = [{key: row[key] for key in row if key != "camera_id"} for row in RECORDS]
    assert build_problem(cameraless, custom, perfect_outputs()).frame_camera is None
    with pytest.raises(DatasetError, match="cameras of the frames are not known"):
        build_problem(cameraless, custom, perfect_outputs(), cross_camera=True)


def cuhk(sizes: dict[str, tuple[str, ...]]) -> SearchProtocol:
    query = Query("1.jpg", A, 5)
    galleries = {name: (Gallery(frames, {"2.jpg": B}),) for name, frames in sizes.items()}
    return SearchProtocol("cuhk_sysu", (query,), galleries)


def test_cuhk_sysu_has_the_sizes_of_the_protocol_and_the_full_set():
    protocol = cuhk({"100": ("2.jpg", "4.jpg"), "50": ("2.jpg",)})
    problem = build_problem(RECORDS, protocol, perfect_outputs(protocol=protocol))
    assert list(problem.galleries) == ["50", "100", "full"]
    assert problem.gallery_name() == "100"
    results = evaluate_galleries(problem)
    assert [results[name].mAP for name in ("50", "100", "full")] == [1.0, 1.0, 1.0]
    searched = {name: set(results[name].best_detection[0]) - {-1} for name in results}
    assert searched == {"50": {2, 3}, "100": {2, 3}, "full": {2, 3, 4}}  # the two of 2.jpg; the one of 3.jpg
    smallest = build_problem(RECORDS, cuhk({"50": ("2.jpg",)}), perfect_outputs(protocol=protocol))
    assert smallest.gallery_name() == "50"


def test_cuhk_sysu_protocols_that_do_not_fit_are_named():
    outputs = perfect_outputs(protocol=cuhk({}))
    with pytest.raises(DatasetError, match="gallery 50: query 0 is searched in frame 9.jpg"):
        build_problem(RECORDS, cuhk({"50": ("2.jpg", "9.jpg")}), outputs)
    with pytest.raises(DatasetError, match="no gallery"):
        build_problem(RECORDS, cuhk({}), outputs)
    two = replace(cuhk({}), galleries={"50": (Gallery((), {}),) * 2})
    with pytest.raises(DatasetError, match="gallery 50: is for 2 queries, the protocol has 1"):
        build_problem(RECORDS, two, outputs)
    with pytest.raises(ConfigError, match="cross_camera"):
        build_problem(RECORDS, cuhk({"50": ("2.jpg",)}), outputs, cross_camera=True)
    with pytest.raises(DatasetError, match="kind is 'mot'"):
        build_problem(RECORDS, replace(cuhk({}), kind="mot"), outputs)


def test_query_feature_of_the_best_overlapping_detection():
    outputs = perfect_outputs()
    shifted = np.array([[5, 0, 25, 40], [2, 0, 22, 40], [0, 0, 20, 40]], np.float32)  # falling distance to query 0
    outputs["1.jpg"] = replace(
        outputs["1.jpg"], box=shifted, score=np.float32([0.9, 0.8, 0.4]), feature=FEATURES[[2, 3, 1]]
    )
    problem = build_problem(RECORDS, PRW, outputs, query_feature="detection")
    assert problem.query_feature[0].tolist() == FEATURES[3].tolist()  # the nearest is below the score threshold
    assert problem.query_feature[2].tolist() == [0, 0, 0, 0]  # B was not detected
    lower = build_problem(RECORDS, PRW, outputs, query_feature="detection", score_threshold=0.4)
    assert lower.query_feature[0].tolist() == FEATURES[1].tolist()
    assert build_problem(RECORDS, PRW, outputs).query_feature[0].tolist() == FEATURES[1].tolist()  # 5 % 4, given
    assert evaluate_search(problem).first_hit[2] == 0


def test_ground_truth_boxes_as_the_gallery_are_an_upper_bound():
    outputs = perfect_outputs("ground_truth")
    for name in outputs:  # a detector that finds nothing does no harm
        outputs[name] = replace(outputs[name], box=np.zeros((0, 4)), score=np.zeros(0), feature=np.zeros((0, 4)))
    problem = build_problem(RECORDS, PRW, outputs, gallery="ground_truth")
    assert problem.det_box.tolist() == problem.gt_box.tolist()
    assert problem.det_feature.tolist() == FEATURES[[1, 2, 1, 3, 2]].tolist()
    assert evaluate_search(problem, SearchOptions(score_weighted=True)).mAP == 1.0


def test_a_detector_that_finds_nothing_has_figures_of_zero():
    outputs = perfect_outputs()
    for name in outputs:
        nothing = np.zeros((0, 4), np.float32)
        outputs[name] = replace(outputs[name], box=nothing, score=nothing[:, 0], feature=nothing)
    for query_feature in ("ground_truth", "detection"):
        problem = build_problem(RECORDS, PRW, outputs, query_feature=query_feature)
        assert evaluate_search(problem).mAP == 0.0


def test_inputs_that_do_not_fit_are_named():
    absent = replace(PRW, queries=(*QUERIES, Query("7.jpg", A, 5)))
    for build in (given_boxes_by_image, lambda *a: build_problem(*a, perfect_outputs())):
        with pytest.raises(DatasetError, match=r"query 3 \(person 5\) is of frame 7.jpg, .* 4 frames"):
            build(RECORDS, absent)
    outputs = perfect_outputs()
    del outputs["4.jpg"]
    with pytest.raises(DatasetError, match="frame 4.jpg was not evaluated: .* 3 of 4 frames"):
        build_problem(RECORDS, PRW, outputs)
    outputs = perfect_outputs()
    outputs["1.jpg"] = replace(outputs["1.jpg"], given_feature=FEATURES[:1])
    with pytest.raises(DatasetError, match="frame 1.jpg: .* 1 given boxes, expected 2"):
        build_problem(RECORDS, PRW, outputs)
    with pytest.raises(ConfigError, match="TEST.PERSON_SEARCH.QUERY_FEATURE is 'box', expected 'ground_truth' or"):
        build_problem(RECORDS, PRW, perfect_outputs(), query_feature="box")
    with pytest.raises(ConfigError, match="TEST.PERSON_SEARCH.GALLERY is 'gt', expected 'detections' or"):
        given_boxes_by_image(RECORDS, PRW, "gt")
    wrong_mode = [*RECORDS[:3], record("4.jpg", (A, 5))]
    wrong_mode[3]["annotations"][0]["bbox_mode"] = 1
    with pytest.raises(DatasetError, match="record 4.jpg: box .* is not of BoxMode.XYXY_ABS"):
        build_problem(wrong_mode, PRW, perfect_outputs())
