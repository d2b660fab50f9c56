"""queries.json: what it says about each query, which files are refused, which queries are chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from person_search.errors import DatasetError
from person_search.evaluation.analysis import best_iou, choose_queries, hardest_queries, query_rows, read_queries
from person_search.evaluation.metrics import SearchOptions, evaluate_search
from person_search.evaluation.storage import write_json


def test_reads_what_the_evaluation_writes(golden_problem, tmp_path):
    rows = query_rows(golden_problem, evaluate_search(golden_problem))
    write_json(tmp_path / "queries.json", rows)
    assert read_queries(tmp_path / "queries.json") == rows
    chosen = choose_queries(rows, 6)
    known = [row["AP"] for row in rows if row["AP"] is not None]
    assert (rows[chosen[0]]["AP"], rows[chosen[-1]]["AP"]) == (max(known), min(known))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "has no queries"),
        ("{", "is not the evaluator's queries.json"),
        ("[3]", "is not the evaluator's queries.json"),
        ('{"queries": []}', "is not the evaluator's queries.json"),
        ('[{"frame": "a", "box": [0, 0, 1, 1], "AP": 1}]', "is not the evaluator's queries.json .*results"),
        ('[{"frame": "a", "box": [0, 0], "AP": 1, "results": []}]', "is not the evaluator's queries.json .*box"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "queries.json").write_text(content)
    with pytest.raises(DatasetError, match=message):
        read_queries(tmp_path / "queries.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match="queries.json cannot be read"):
        read_queries(tmp_path / "queries.json")


def test_queries_are_spread_from_best_to_worst():
    precisions = [0.3, None, 0.9, 0.0, 0.5, 0.1, 0.7, 0.2, 0.4, 0.8]
    rows = [{"AP": ap} for ap in precisions]
    assert choose_queries(rows, 5) == [2, 6, 8, 7, 3]  # 0.9, 0.7, 0.4, 0.2, 0.0
    assert choose_queries(rows, 4) == [2, 4, 0, 3]  # the places nearest to a third and to two thirds
    assert choose_queries(rows, 1) == [2]
    assert choose_queries(rows, 0) == []
    assert choose_queries(rows, 50) == [2, 9, 6, 4, 8, 0, 7, 5, 3]
    assert choose_queries([{"AP": None}] * 3, 2) == [0, 2]


@given(st.lists(st.sampled_from([None, 0.0, 0.25, 0.5, 1.0]), min_size=1, max_size=40), st.integers(2, 12))
def test_chosen_queries(precisions, count):
    rows = [{"AP": ap} for ap in precisions]
    chosen = choose_queries(rows, count)
    known = [ap for ap in precisions if ap is not None]
    assert len(chosen) == len(set(chosen)) == min(count, len(known) or len(rows))
    if known:
        drawn = [precisions[index] for index in chosen]
        assert None not in drawn
        assert drawn == sorted(drawn, reverse=True)
        assert drawn[0] == max(known)
        assert len(drawn) == 1 or drawn[-1] == min(known)


@pytest.mark.parametrize("gallery", ["all_cameras", "cross_camera"])
def test_iou_of_the_best_detections_with_the_person(golden_problem, slow, gallery):
    result = evaluate_search(golden_problem, SearchOptions(score_threshold=0.6), gallery)
    iou = best_iou(golden_problem, result)
    shown = 0
    for query in (0, 75, 149):
        frames = slow.gallery(golden_problem, query, cross_camera=gallery == "cross_camera")
        for rank, detection in enumerate(result.best_detection[query]):
            box = frames[golden_problem.det_frame[detection]]
            if box is None:
                assert np.isnan(iou[query, rank])
                continue
            assert iou[query, rank] == pytest.approx(slow.iou(golden_problem.det_box[detection], box))
            shown += 1
    assert shown >= 5
    assert (iou[result.best_correct] > 0).all()


def test_iou_is_missing_where_there_are_fewer_detections(golden_problem):
    result = evaluate_search(golden_problem, SearchOptions(score_threshold=1.0))
    assert (result.best_detection < 0).all()
    assert np.isnan(best_iou(golden_problem, result)).all()


def test_the_hardest_queries():
    rows = [{"AP": ap, "matches": n} for ap, n in [(0.3, 9), (None, 0), (0.0, 1), (0.0, 4), (0.9, 2), (0.3, 9)]]
    assert hardest_queries(rows, 4) == [3, 2, 0, 5]
    assert hardest_queries(rows, 50) == [3, 2, 0, 5, 4]
    assert hardest_queries(rows, 0) == hardest_queries(rows[1:2], 3) == []
