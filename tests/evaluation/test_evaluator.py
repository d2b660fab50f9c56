"""The evaluator from fake model outputs to figures and files, on one process and on two."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import print_csv_format
from detectron2.structures import Boxes, Instances
from person_search.config import add_ssl_config
from person_search.data.records import Gallery, Query, SearchProtocol
from person_search.errors import ConfigError, DatasetError, TrainingError
from person_search.evaluation import PersonSearchEvaluator, evaluator
from person_search.evaluation.problem import SearchProblem
from person_search.evaluation.rescoring import ContextMatching, Reranking


@pytest.fixture(scope="module")
def records(golden_problem) -> list[dict]:
    """The frames and boxes of the golden problem as dataset records."""
    rows = [
        {"file_name": f"/x/{name}", "image_id": name, "height": 1080, "width": 1920, "annotations": []}
        | {"camera_id": int(camera)}
        for name, camera in zip(golden_problem.frame_name, golden_problem.frame_camera, strict=True)
    ]
    boxes = zip(golden_problem.gt_frame, golden_problem.gt_box, golden_problem.gt_person_id, strict=True)
    for frame, box, person in boxes:
        rows[frame]["annotations"].append(
            {"bbox": box.tolist(), "bbox_mode": 0, "category_id": 0, "iscrowd": 0, "person_id": int(person)}
        )
    return rows


@pytest.fixture(scope="module")
def protocol(golden_problem) -> SearchProtocol:
    rows = zip(golden_problem.query_frame, golden_problem.query_box, golden_problem.query_person_id, strict=True)
    return SearchProtocol("prw", tuple(
        Query(golden_problem.frame_name[frame], tuple(box.tolist()), int(person)) for frame, box, person in rows
    ))  # fmt: skip


def run(subject: PersonSearchEvaluator, problem: SearchProblem, frames=None) -> None:
    """Feeds the detections and query features of `problem` as if a model had returned them."""
    for frame in range(len(problem.frame_name)) if frames is None else frames:
        own = problem.det_frame == frame
        instances = Instances((1080, 1920))
        instances.pred_boxes = Boxes(torch.from_numpy(problem.det_box[own]))
        instances.scores = torch.from_numpy(problem.det_score[own])
        instances.pred_classes = torch.zeros(int(own.sum()), dtype=torch.int64)
        instances.embeddings = torch.from_numpy(problem.det_feature[own])
        output = {"instances": instances}
        asked = problem.query_feature[problem.query_frame == frame]
        if len(asked):
            output["given_embeddings"] = torch.from_numpy(asked)
        subject.process([{"image_id": problem.frame_name[frame]}], [output])


def build(records, protocol, **options) -> PersonSearchEvaluator:
    options = {"score_weighted": False} | options
    return PersonSearchEvaluator(dataset_name="golden_prw", records=records, protocol=protocol, **options)


@pytest.fixture(scope="module")
def expected(shared) -> dict:
    figures = json.loads((shared / "golden" / "expected.json").read_text())["search_prw.npz"]
    return {case: {name: 100 * value for name, value in row.items()} for case, row in figures.items()}


def test_golden_figures_and_files(golden_problem, records, protocol, expected, tmp_path):
    subject = build(records, protocol, output_dir=str(tmp_path / "inference"))
    subject.reset()
    run(subject, golden_problem)
    figures = subject.evaluate()
    assert isinstance(figures, OrderedDict)
    assert list(figures) == ["search", "search_cross_camera", "detection"]
    assert figures["search"] == pytest.approx(expected["all_cameras"], abs=1e-4)
    assert figures["search_cross_camera"] == pytest.approx(expected["cross_camera"], abs=1e-4)
    assert figures["detection"] == pytest.approx(expected["detection"], abs=1e-4)
    print_csv_format(figures)
    assert subject.problem.query_feature.shape == (150, 256)

    written = ["breakdown.json", "queries.json", "report.html", "results.json"]
    assert sorted(path.name for path in (tmp_path / "inference").iterdir()) == written
    results = json.loads((tmp_path / "inference" / "results.json").read_text())
    assert results["figures"] == figures
    assert results["protocol"]["galleries"] == {
        "search": "every test frame but the query's own, all cameras",
        "search_cross_camera": "every test frame of other cameras than the query's",
    }
    assert results["protocol"]["similarity"] == "cosine"
    assert results["counts"] == {
        "frames": 700, "detections": 3692, "annotated_boxes": 2887, "queries": 150, "queries_without_match": 0,
        "queries_without_feature": 0, "detections_above_threshold": 3038,
    }  # fmt: skip


def test_without_the_report(golden_problem, records, protocol, tmp_path, monkeypatch):
    monkeypatch.setattr("person_search.report.write_report", lambda *_: pytest.fail("a report was written"))
    subject = build(records, protocol, output_dir=str(tmp_path), report=False)
    run(subject, golden_problem)
    subject.evaluate()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["breakdown.json", "queries.json", "results.json"]


def test_breakdown_file_adds_up(golden_problem, records, protocol, expected, tmp_path):
    subject = build(records, protocol, output_dir=str(tmp_path), report=False)
    run(subject, golden_problem)
    subject.evaluate()
    breakdown = json.loads((tmp_path / "breakdown.json").read_text())
    assert breakdown["main_gallery"] == "all_cameras"
    assert list(breakdown["galleries"]) == ["all_cameras", "cross_camera"]
    for name, gallery in breakdown["galleries"].items():
        assert gallery["mAP"] == pytest.approx(expected[name]["mAP"])
        assert [gallery["cmc"][k - 1] for k in (1, 5, 10)] == pytest.approx(
            [expected[name][key] for key in ("top1", "top5", "top10")]
        )
        for rows in (gallery["cameras"], gallery["heights"]):
            assert sum(row["queries"] for row in rows) == gallery["queries"]
            for figure, whole in (("mAP", gallery["mAP"]), ("top1", gallery["cmc"][0])):
                mean = sum(row["queries"] * row[figure] for row in rows if row["queries"]) / gallery["queries"]
                assert mean == pytest.approx(whole)
    curve = breakdown["detection"]
    assert len(curve["recall"]) == len(curve["precision"]) == len(curve["score"]) <= 301
    assert curve["recall"][-1] == pytest.approx(expected["detection"]["recall"], abs=1e-3)


def test_queries_file_adds_up_to_the_figures(golden_problem, records, protocol, expected, tmp_path):
    subject = build(records, protocol, output_dir=str(tmp_path))
    run(subject, golden_problem)
    subject.evaluate()
    rows = json.loads((tmp_path / "queries.json").read_text())
    assert len(rows) == 150
    assert 100 * np.mean([row["AP"] for row in rows]) == pytest.approx(expected["all_cameras"]["mAP"])
    ranks = [row["first_correct_rank"] or 999 for row in rows]
    assert 100 * np.mean([rank <= 5 for rank in ranks]) == pytest.approx(expected["all_cameras"]["top5"])
    for row, query in zip(rows, protocol.queries, strict=True):
        assert (row["frame"], row["person_id"]) == (query.image_id, query.person_id)
        assert row["box"] == pytest.approx(query.bbox, abs=1e-3)
        correct = [result["correct"] for result in row["results"]]
        assert len(correct) == 10
        rank = row["first_correct_rank"]
        assert (correct.index(True) + 1 if any(correct) else None) == (rank if rank and rank <= 10 else None)
        similarities = [result["similarity"] for result in row["results"]]
        assert similarities == sorted(similarities, reverse=True)
        assert all(result["frame"] != row["frame"] for result in row["results"])


def test_options_reach_the_figures(golden_problem, records, protocol, expected, tmp_path):
    def figures(**options):
        subject = build(records, protocol, cross_camera=False, output_dir=str(tmp_path), **options)
        run(subject, golden_problem)
        return subject.evaluate()["search"]["mAP"]

    plain = expected["all_cameras"]["mAP"]
    assert figures() == pytest.approx(plain)
    cbgm = figures(cbgm=ContextMatching(30, 4))
    assert cbgm == pytest.approx(expected["all_cameras_cbgm_k1_30_k2_4"]["mAP"], abs=1e-4)
    assert "k1 = 30, k2 = 4" in json.loads((tmp_path / "results.json").read_text())["protocol"]["context_matching"]
    others = {
        "score_weighted": figures(score_weighted=True),
        "score_threshold": figures(score_threshold=0.7),
        "query_feature": figures(query_feature="detection"),
        "reranking": figures(reranking=Reranking(shortlist=30)),
    }
    assert len({round(value, 6) for value in (plain, cbgm, *others.values())}) == 6


def test_ground_truth_gallery(golden_problem, records, protocol, tmp_path):
    options = {"query_feature": "detection", "score_weighted": True, "output_dir": str(tmp_path)}
    subject = build(records, protocol, gallery="ground_truth", **options)
    for record in records:
        boxes = subject.given_boxes_by_image[record["image_id"]]
        persons = [query.person_id for query in protocol.queries if query.image_id == record["image_id"]]
        persons += [annotation["person_id"] for annotation in record["annotations"]]
        assert len(boxes) == len(persons)
        features = torch.zeros(len(persons), 1000)
        features[range(len(persons)), persons] = 1
        instances = Instances((1080, 1920), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0))
        instances.embeddings = torch.zeros(0, 1000)
        output = {"instances": instances, "given_embeddings": features}
        subject.process([{"image_id": record["image_id"]}], [output])
    figures = subject.evaluate()
    assert figures["search"] == {"mAP": 100, "top1": 100, "top5": 100, "top10": 100}
    assert "detection" not in figures
    results = json.loads((tmp_path / "results.json").read_text())
    assert "detections" not in results["counts"]
    # Nothing was detected: neither query nor similarity may be said to come from a detection.
    described = {key: results["protocol"][key] for key in ("searched", "query_feature", "similarity")}
    assert described == {
        "searched": "ground-truth boxes",
        "query_feature": "of the searched ground-truth box with the highest IoU to the query's",
        "similarity": "cosine",
    }


def cuhk_protocol(protocol, sizes) -> SearchProtocol:
    names = [query.image_id for query in protocol.queries]
    galleries = {}
    for size in sizes:
        rows = []
        for query in protocol.queries:
            same = [q for q in protocol.queries if q.person_id == query.person_id and q.image_id != query.image_id]
            frames = dict.fromkeys([q.image_id for q in same] + [name for name in names if name != query.image_id])
            listed = tuple(frames)[: int(size)]
            rows.append(Gallery(listed, {q.image_id: q.bbox for q in same[::-1] if q.image_id in listed}))
        galleries[size] = tuple(rows)
    return replace(protocol, kind="cuhk_sysu", galleries=galleries)


def test_cuhk_sysu_names_its_sizes_and_those_that_are_missing(golden_problem, records, protocol, tmp_path):
    subject = build(records, cuhk_protocol(protocol, ["50", "100"]), output_dir=str(tmp_path))
    run(subject, golden_problem)
    figures = subject.evaluate()
    assert list(figures) == ["search", "search_gallery_100", "search_gallery_50", "search_gallery_full", "detection"]
    assert figures["search"] == figures["search_gallery_100"]
    rising = [figures[f"search_gallery_{size}"]["mAP"] for size in ("full", "100", "50")]
    assert rising == sorted(set(rising))
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results["left_out"]) == ["500", "1000", "2000", "4000"]
    assert results["protocol"]["galleries"]["search"] == "100 frames a query, from the protocol file"


def test_galleries_in_which_no_query_has_a_match_are_left_out(golden_problem, records, protocol, tmp_path):
    one_camera = [{**record, "camera_id": 1} for record in records]
    subject = build(one_camera, protocol, output_dir=str(tmp_path))
    run(subject, golden_problem)
    assert "search_cross_camera" not in subject.evaluate()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["left_out"] == {"cross_camera": "no query has a match in this gallery"}
    stranger = replace(protocol, queries=tuple(replace(query, person_id=5000) for query in protocol.queries))
    subject = build(records, stranger)
    run(subject, golden_problem)
    with pytest.raises(DatasetError, match="none of the 150 queries has a match"):
        subject.evaluate()


def test_two_ranks_are_gathered_on_the_first(golden_problem, records, protocol, expected, monkeypatch):
    """Two evaluators that each saw half of the frames; the collectives hand over what the other one has."""
    ranks = [build(records, protocol) for _ in range(2)]
    for rank, subject in enumerate(ranks):
        run(subject, golden_problem, range(rank, 700, 2))
    sent: list[dict] = []
    monkeypatch.setattr(evaluator.comm, "all_gather", lambda value: [value])
    with monkeypatch.context() as second:
        second.setattr(evaluator.comm, "gather", lambda value: sent.append(value) or [])
        second.setattr(evaluator.comm, "is_main_process", lambda: False)
        assert ranks[1].evaluate() == {}
    monkeypatch.setattr(evaluator.comm, "gather", lambda value: [value, *sent])
    assert ranks[0].evaluate()["search"] == pytest.approx(expected["all_cameras"], abs=1e-4)
    # An error of the first rank reaches the others, which would wait for it in vain.
    monkeypatch.setattr(evaluator.comm, "is_main_process", lambda: False)
    monkeypatch.setattr(evaluator.comm, "all_gather", lambda value: [DatasetError("of rank 0"), value])
    with pytest.raises(DatasetError, match="of rank 0"):
        ranks[1].evaluate()


def test_reset_forgets(golden_problem, records, protocol):
    subject = build(records, protocol)
    run(subject, golden_problem)
    subject.reset()
    assert subject.problem is None
    with pytest.raises(DatasetError, match="was not evaluated"):
        subject.evaluate()


def test_diverged_outputs_are_named(golden_problem, records, protocol):
    feature = golden_problem.det_feature.copy()
    feature[golden_problem.det_frame == 3] = np.nan
    diverged = golden_problem.__class__.__new__(golden_problem.__class__)
    for name, value in {**vars(golden_problem), "det_feature": feature}.items():
        object.__setattr__(diverged, name, value)
    with pytest.raises(TrainingError, match=f"frame {golden_problem.frame_name[3]}: .* not finite"):
        run(build(records, protocol), diverged)


def test_options_that_cannot_work_are_named(records, protocol):
    with pytest.raises(ConfigError, match="TEST.PERSON_SEARCH.QUERY_FEATURE"):
        build(records, protocol, query_feature="both")
    with pytest.raises(ConfigError, match="TEST.PERSON_SEARCH.GALLERY"):
        build(records, protocol, gallery="all")
    with pytest.raises(ConfigError, match="cannot both be on"):
        build(records, protocol, cbgm=ContextMatching(), reranking=Reranking())
    with pytest.raises(DatasetError, match="has no queries"):
        build(records, replace(protocol, queries=()))
    with pytest.raises(DatasetError, match="query 0 .* is of frame"):
        build(records[:3], protocol)


def test_without_anybody_to_search_detection_alone_is_measured(golden_problem, records, protocol, tmp_path, caplog):
    for name in ("queries.json", "report.html"):
        (tmp_path / name).write_text("left by an evaluation that could search")
    nobody = SearchProtocol("custom", (), no_search="no person has an identity")
    boxes_alone = replace(golden_problem, query_frame=np.full_like(golden_problem.query_frame, -1)[:0],
                          query_box=np.zeros((0, 4)), query_person_id=np.zeros(0, np.int64),
                          query_feature=golden_problem.query_feature[:0], galleries={}, main_gallery="")  # fmt: skip
    found = []
    for given, problem in ((protocol, golden_problem), (nobody, boxes_alone)):
        subject = build(records, given, output_dir=str(tmp_path))
        run(subject, problem)
        with caplog.at_level("INFO", logger="person_search"):
            found.append(subject.evaluate())
    assert found[1] == {"detection": found[0]["detection"]}
    (line,) = [m for m in caplog.messages if "search is not evaluated, since no person has an identity" in m]
    content = json.loads((tmp_path / "results.json").read_text())
    assert set(content["figures"]) == {"detection"} and content["left_out"] == {"search": "no person has an identity"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json"]
    with pytest.raises(ConfigError, match="TEST.PERSON_SEARCH.GALLERY is 'ground_truth', .* set it to 'detections'"):
        build(records, nobody, gallery="ground_truth")


def test_nobody_to_search_and_nobody_detected(records, tmp_path):
    subject = build(records, SearchProtocol("custom", (), no_search="no person has an identity"))
    nothing = Instances((1080, 1920), pred_boxes=Boxes(torch.zeros(0, 4)), scores=torch.zeros(0),
                        pred_classes=torch.zeros(0), embeddings=torch.zeros(0, 8))  # fmt: skip
    for record in records:
        subject.process([record], [{"instances": nothing}])
    assert subject.evaluate()["detection"] == {"AP": 0, "recall": 0, "recall_labelled": 0}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["SCORE_THRESHOLD", 1.5], "^TEST.PERSON_SEARCH.SCORE_THRESHOLD is 1.5, expected a number from 0 to 1"),
        (["CBGM.ENABLED", True, "CBGM.K1", 0], "^TEST.PERSON_SEARCH.CBGM.K1 is 0, expected 1 or more"),
        (
            ["RERANKING.ENABLED", True, "RERANKING.LAMBDA", 2.0],
            "^TEST.PERSON_SEARCH.RERANKING.LAMBDA is 2.0, expected a number from 0 to 1",
        ),
        (["CBGM.ENABLED", True, "RERANKING.ENABLED", True], "CBGM.ENABLED and .*RERANKING.ENABLED cannot .* set one"),
    ],
)
def test_keys_that_cannot_work_are_named(registered, options, message):
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_list([f"TEST.PERSON_SEARCH.{word}" if isinstance(word, str) else word for word in options])
    with pytest.raises(ConfigError, match=message):
        PersonSearchEvaluator(cfg, registered)


@pytest.fixture()
def registered(records, protocol):
    DatasetCatalog.register("golden_prw_registered", lambda: records)
    MetadataCatalog.get("golden_prw_registered").set(load_protocol=lambda: protocol)
    yield "golden_prw_registered"
    DatasetCatalog.remove("golden_prw_registered")
    MetadataCatalog.remove("golden_prw_registered")


def test_from_config(golden_problem, records, protocol, registered, expected):
    cfg = get_cfg()
    add_ssl_config(cfg)
    given = PersonSearchEvaluator.given_boxes(cfg, registered)
    subject = PersonSearchEvaluator(cfg, registered)
    assert {name: boxes.tolist() for name, boxes in given.items()} == {
        name: boxes.tolist() for name, boxes in subject.given_boxes_by_image.items()
    }
    run(subject, golden_problem)
    weighted = subject.evaluate()["search"]["mAP"]
    cfg.merge_from_list(["TEST.PERSON_SEARCH.SCORE_WEIGHTED", False])
    subject = PersonSearchEvaluator(cfg, registered)
    run(subject, golden_problem)
    assert subject.evaluate()["search"]["mAP"] == pytest.approx(expected["all_cameras"]["mAP"])
    assert weighted != pytest.approx(expected["all_cameras"]["mAP"])
    cfg.merge_from_list(["TEST.PERSON_SEARCH.CBGM.ENABLED", True, "TEST.PERSON_SEARCH.RERANKING.ENABLED", True])
    with pytest.raises(ConfigError, match="cannot both be on"):
        PersonSearchEvaluator(cfg, registered)
    with pytest.raises(ConfigError, match="dataset absent is not registered"):
        PersonSearchEvaluator(cfg, "absent")
    MetadataCatalog.remove(registered)
    MetadataCatalog.get(registered).set(registered_entry={"format": "own, without queries"})
    with pytest.raises(DatasetError, match="golden_prw_registered has no queries"):
        PersonSearchEvaluator.given_boxes(cfg, registered)
    MetadataCatalog.get(registered).set(load_protocol=lambda: protocol)


def test_own_sets_are_searched_across_cameras_when_asked(golden_problem, records, protocol, expected):
    own = replace(protocol, kind="custom")
    names = {"golden_own": records, "golden_unknown": [{**r, "camera_id": None} for r in records]}
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_list(["TEST.PERSON_SEARCH.SCORE_WEIGHTED", False, "TEST.PERSON_SEARCH.CONTROLS", False])
    try:
        for name, these in names.items():
            DatasetCatalog.register(name, lambda these=these: these)
            MetadataCatalog.get(name).set(load_protocol=lambda: own)
        subject = PersonSearchEvaluator(cfg, "golden_own")
        run(subject, golden_problem)
        assert list(subject.evaluate()) == ["search", "detection"]
        cfg.merge_from_list(["TEST.PERSON_SEARCH.CROSS_CAMERA", True])
        subject = PersonSearchEvaluator(cfg, "golden_own")
        run(subject, golden_problem)
        assert subject.evaluate()["search_cross_camera"] == pytest.approx(expected["cross_camera"], abs=1e-4)
        with pytest.raises(ConfigError, match="CROSS_CAMERA is True, but golden_unknown has frames without camera_id"):
            PersonSearchEvaluator(cfg, "golden_unknown")
    finally:
        for name in names:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)


def test_a_set_of_another_evaluator_type_is_refused(registered):
    cfg = get_cfg()
    add_ssl_config(cfg)
    MetadataCatalog.get(registered).set(evaluator_type="lvis")
    with pytest.raises(DatasetError, match="golden_prw_registered has no queries: its evaluator_type is 'lvis'"):
        PersonSearchEvaluator(cfg, registered)
