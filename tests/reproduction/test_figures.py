"""Figures: the numbers that they draw, what they choose to show, and that their words can be read."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from person_search.errors import ConfigError, DatasetError
from person_search.evaluation import SearchProblem
from person_search.reproduction.compared import find_compared, stored_problem
from person_search.reproduction.fig1_scales import areas_by_identity, scale_figure
from person_search.reproduction.fig4_labels import label_figure, over_seeds
from person_search.reproduction.fig5_rank1 import choose_differing, common_queries, rank1_figure
from person_search.reproduction.fig6_galleries import gallery_figure
from person_search.reproduction.fig7_tsne import LabelledFeatures, choose_identities, labelled_features, tsne_figure
from person_search.reproduction.figures import FIGURES
from person_search.reproduction.rows import PARAMETERS
from person_search.reproduction.sweep_figure import SweepPoint, sweep_figure
from person_search.reproduction.tables import spread

from ..figures import readable_texts

# ---------------------------------------------------------------------- 1


def record(*persons: tuple[int, float]) -> dict:
    return {"annotations": [{"bbox": [0, 0, area / 10, 10], "person_id": person} for person, area in persons]}


def test_areas_of_each_identity():
    areas = areas_by_identity([record((1, 300), (2, 50), (-1, 9)), record((1, 100), (-1, 9)), record((3, 5))])
    assert {person: values.tolist() for person, values in areas.items()} == {1: [100.0, 300.0]}


def test_figure_1():
    rng = np.random.default_rng(0)
    areas = {p: np.sort(rng.uniform(500, 60000, 9)) for p in range(40)}
    texts = readable_texts(scale_figure({"a_train": areas, "a_test": {0: np.array([10.0, 80.0])}}), ticks=False)
    assert "a_train: box areas of 40 identities" in texts and "largest area / smallest: median 8.0" in texts
    with pytest.raises(DatasetError, match="b: no identity is seen twice"):
        scale_figure({"b": {}})


# ---------------------------------------------------------------------- 4


def test_mean_over_seeds_where_all_have_logged():
    first = np.array([0, 8, 16]), np.array([0.2, 0.4, 0.9])
    second = np.array([0, 16, 24]), np.array([0.4, 0.5, 1.0])
    iterations, mean, deviation = over_seeds([first, second])
    assert iterations.tolist() == [0, 16]
    np.testing.assert_allclose(mean, [0.3, 0.7])
    np.testing.assert_allclose(deviation, [0.1 * 2**0.5, 0.2 * 2**0.5])
    assert over_seeds([first])[2].tolist() == [0, 0, 0]


def test_figure_4():
    iterations = np.arange(0, 32, 8)
    names = ("cluster_precision", "cluster_recall", "multi_label_precision", "multi_label_recall", "clusters")
    metrics = {f"pseudo_labels/{name}": (iterations, np.linspace(0, 0.1 * k, 4)) for k, name in enumerate(names, 1)}
    figure = label_figure({"baseline": [metrics], "SSL": [metrics, metrics]})
    assert [line.get_label() for line in figure.axes[0].lines] == ["baseline", "SSL"]
    np.testing.assert_allclose(figure.axes[3].lines[1].get_xydata(), [[0, 0], [1, 40 / 3], [2, 80 / 3], [3, 40]])
    assert {"baseline", "SSL", "multi-labels: recall"} <= set(readable_texts(figure, ticks=False))
    with pytest.raises(DatasetError, match="in the metrics of x: the training set needs identities"):
        label_figure({"x": [{"loss": metrics["pseudo_labels/clusters"]}]})


def test_figure_4_counts_epochs_where_clusterings_are_further_apart():
    iterations = np.arange(0, 64, 16)
    metrics = {f"pseudo_labels/{name}": (iterations, np.zeros(4)) for name in ("clusters", "cluster_recall")}
    figure = label_figure({"each epoch": [metrics], "every second": [metrics]}, {"every second": 2})
    lines = figure.axes[1].lines
    assert [line.get_xdata().tolist() for line in lines] == [[0, 1, 2, 3], [0, 2, 4, 6]]


# ---------------------------------------------------------------------- 5


def query(number: int, correct: bool, ap: float) -> dict:
    result = {"frame": "f", "box": [0, 0, 9, 20], "score": 1.0, "similarity": 0.5, "correct": correct}
    return {"frame": f"q{number}", "box": [number, 0, 9, 20], "AP": ap, "results": [result]}


def test_queries_are_joined_by_frame_and_box():
    first, second = [query(0, True, 1.0), query(1, True, 0.5)], [query(1, False, 0.1), query(2, True, 1.0)]
    ((a, b),) = common_queries(first, second)
    assert (a["AP"], b["AP"]) == (0.5, 0.1)
    with pytest.raises(DatasetError, match="no queries in common"):
        common_queries(first[:1], second)


def test_shown_queries_favour_neither_training():
    # Only the second correct: 0 to 5 (gains 0.9 ... 0.4); only the first: 6, 7 (losses); both: 8 (the largest change).
    correct = [(False, True)] * 6 + [(True, False)] * 2 + [(True, True)]
    gain = [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, -0.2, -0.3, 0.95]
    pairs = [
        (query(i, a, 0.5 - g / 2), query(i, b, 0.5 + g / 2))
        for i, ((a, b), g) in enumerate(zip(correct, gain, strict=True))
    ]
    assert choose_differing(pairs, 4) == [0, 1, 2, 7]  # shares of 6 to 2
    assert choose_differing(pairs, 9) == [0, 1, 2, 3, 4, 5, 8, 6, 7]
    assert choose_differing(pairs[8:], 3) == [0]
    assert choose_differing(pairs[:6], 2) == [0, 1] and choose_differing(pairs[6:8], 1) == [1]


def test_figure_5():
    first = [query(i, i % 3 == 0, 0.5) for i in range(7)]
    second = [query(i, i % 2 == 0, 0.5) for i in range(7)]
    figure = rank1_figure({"baseline": first, "SSL": second}, lambda name: np.full((60, 60, 3), 90, np.uint8))
    texts = readable_texts(figure, ticks=False)
    # Correct with the first: 0, 3, 6; with the second: 0, 2, 4, 6.
    assert any("both 2,\nwith 'SSL' alone 2, with 'baseline' alone 1, with neither 2" in text for text in texts)
    assert len(figure.axes) == 18


# ---------------------------------------------------------------------- 6


def test_figure_6():
    figure = gallery_figure(
        {"baseline": [{10: 50.0, 20: 40.0}, {10: 54.0, 20: 42.0}], "SSL": [{10: 60.0, 20: 55.0}]}, "demo"
    )
    (first, second) = figure.axes[0].containers
    np.testing.assert_allclose(first.lines[0].get_ydata(), [52.0, 41.0])
    np.testing.assert_allclose(second.lines[0].get_ydata(), [60.0, 55.0])
    bar = first.lines[2][0].get_segments()[0]
    np.testing.assert_allclose(bar[:, 1], [52 - 8**0.5, 52 + 8**0.5])
    assert {"baseline", "SSL", "demo", "mAP, %"} <= set(readable_texts(figure, ticks=False))


# ---------------------------------------------------------------------- 7


def problem(det_frame, det_box, gt_frame, gt_box, persons) -> SearchProblem:
    count, none = len(det_frame), np.zeros(0, np.int64)
    return SearchProblem(
        det_frame=np.array(det_frame), det_box=np.array(det_box, float), det_score=np.linspace(0.6, 0.9, count),
        det_feature=np.eye(count), frame_name=("a", "b", "c"),
        gt_frame=np.array(gt_frame), gt_box=np.array(gt_box, float),
        gt_person_id=np.array(persons), query_frame=none, query_box=np.zeros((0, 4)), query_person_id=none,
        query_feature=np.zeros((0, count)),
    )  # fmt: skip


def test_features_get_the_person_of_the_box_that_they_overlap():
    features = labelled_features(
        problem(
            det_frame=[1, 0, 0, 2],
            det_box=[[0, 0, 10, 20], [0, 0, 10, 14], [0, 0, 10, 19], [50, 0, 60, 20]],
            gt_frame=[0, 1, 2, 1],
            gt_box=[[0, 0, 10, 20], [0, 0, 10, 20], [0, 0, 10, 20], [0, 0, 10, 20]],
            persons=[7, 8, 9, -1],
        )
    )
    # Frame 0: the better of two; frame 1: nobody knows one of the two persons; frame 2: no overlap.
    assert features.person.tolist() == [7, 8]
    assert features.feature.argmax(axis=1).tolist() == [2, 0]
    assert features.area.tolist() == [200.0, 200.0]


def test_persons_of_the_most_different_sizes_are_drawn():
    person = np.repeat([3, 5, 8, 9], [6, 6, 6, 2])
    area = np.concatenate([np.linspace(10, 20, 6), np.linspace(10, 90, 6), np.linspace(10, 50, 6), [1, 999]])
    assert choose_identities(person, area, 2) == [5, 8]
    assert choose_identities(person, area) == [3, 5, 8]


def test_figure_7():
    rng = np.random.default_rng(0)
    person = np.repeat(np.arange(4), 6)
    feature = np.eye(8)[person] + 0.05 * rng.normal(size=(24, 8))
    area = np.tile([1000.0, 3599, 3600, 45300, 45301, 9e4], 4)
    figure = tsne_figure(
        {"baseline": LabelledFeatures(feature, person, area), "SSL": LabelledFeatures(feature, person, area)}
    )
    assert {"identity (and color)", "small, below 3,600 pixels"} <= set(readable_texts(figure, ticks=False))
    readable_texts(tsne_figure({"SSL": LabelledFeatures(feature, person, area)}), ticks=False)
    markers = [
        len(collection.get_offsets()) for collection in figure.axes[0].collections if len(collection.get_paths()) == 1
    ]
    assert markers == [2, 2, 2] * 4  # small, medium and large of each person
    few = LabelledFeatures(feature[:5], person[:5], area[:5])
    with pytest.raises(DatasetError, match="few: only 5 boxes"):
        tsne_figure({"few": few})


# ---------------------------------------------------------------------- sweep


def test_the_page_of_the_sweep():
    panels = {
        parameter: [SweepPoint(0.1, spread([10.0, 14.0])), SweepPoint(0.3, spread([20.0])), SweepPoint(0.5, spread([]))]
        for parameter in list(PARAMETERS.values())[:4]
    }
    figure = sweep_figure(panels, dict.fromkeys(panels, 0.3), "Sensitivity: demo")
    assert {p.title for p in panels} | {"Sensitivity: demo", "mAP, %", "the dataset's own value"} <= set(
        readable_texts(figure, ticks=False)
    )
    line, own = figure.axes[0].lines[0], figure.axes[0].lines[-1]
    np.testing.assert_allclose(line.get_ydata()[:2], [12.0, 20.0])
    np.testing.assert_allclose(own.get_xydata(), [[1.0, 20.0]])
    assert "± standard deviation" in readable_texts(figure, ticks=False)


def test_the_page_of_a_sweep_with_one_seed_shows_no_deviation():
    panels = {PARAMETERS["m"]: [SweepPoint(0.1, spread([10.0])), SweepPoint(0.3, spread([20.0]))]}
    figure = sweep_figure(panels, {PARAMETERS["m"]: 0.3}, "one")
    assert "one seed" in readable_texts(figure, ticks=False) and "± standard deviation" not in readable_texts(
        figure, ticks=False
    )
    assert not any(len(bar) for bars in figure.axes[0].collections for bar in bars.get_segments())


# ---------------------------------------------------------------------- what is compared


def training(folder: Path, finished: bool = False) -> Path:
    folder.mkdir(parents=True)
    if finished:
        (folder / "result.json").write_text("{}")
    (folder / "config.yaml").write_text("DATASETS:\n  TEST: ['synthetic_tiny_test']\n")
    return folder


def test_runs_are_rows_or_folders(tmp_path):
    for seed in (0, 1):
        training(tmp_path / "out" / "ssl" / f"seed_{seed}", finished=True)
    training(tmp_path / "out" / "ssl" / "seed_2")
    other = training(tmp_path / "other")
    ssl, mine = find_compared(tmp_path / "out", ["ssl", f"mine={other}"], ())
    assert (ssl.title, [f.name for f in ssl.folders]) == ("SSL", ["seed_0", "seed_1"])
    assert (mine.title, mine.folders) == ("mine", (other,))
    (only,) = find_compared(tmp_path / "out", [], ("baseline", "ssl"))
    assert only == ssl
    with pytest.raises(ConfigError, match=r"--runs sl: .*out/sl/seed_\*/result.json is missing; name a row"):
        find_compared(tmp_path / "out", ["sl"], ())
    with pytest.raises(ConfigError, match="two trainings have the same title among SSL, SSL"):
        find_compared(tmp_path / "out", ["ssl", f"SSL={other}"], ())
    with pytest.raises(ConfigError, match="give the training a title"):
        find_compared(tmp_path / "out", [f"={other}"], ())
    with pytest.raises(ConfigError, match="has no finished row of baseline"):
        find_compared(tmp_path, [], ("baseline",))
    with pytest.raises(DatasetError, match=r"problem.npz is missing: evaluate with TEST.PERSON_SEARCH.SAVE_PROBLEM"):
        stored_problem(other, mine.config())


def test_two_trainings_of_one_dataset_are_needed(tmp_path, base):
    training(tmp_path / "ssl" / "seed_0", finished=True)
    with pytest.raises(ConfigError, match="figure 5 compares two trainings, 1 are given"):
        FIGURES["5"](base, tmp_path, [])
    (training(tmp_path / "baseline" / "seed_0", finished=True) / "config.yaml").write_text(
        "DATASETS:\n  TEST: ['prw_test']\n"
    )
    with pytest.raises(ConfigError, match="evaluated on prw_test, synthetic_tiny_test"):
        FIGURES["5"](base, tmp_path, [])


@pytest.mark.parametrize("number", ["4", "6"])
def test_more_lines_than_can_be_told_apart_are_refused(tmp_path, base, number):
    folders = [training(tmp_path / str(i)) for i in range(7)]
    with pytest.raises(ConfigError, match="--runs names 7 trainings; more than 6 lines"):
        FIGURES[number](base, tmp_path, [f"{i}={folder}" for i, folder in enumerate(folders)])


def test_figure_4_is_written(tmp_path, base):
    folder = training(tmp_path / "ssl" / "seed_0", finished=True)
    lines = [{"iteration": i, "pseudo_labels/clusters": 3, "pseudo_labels/cluster_recall": 0.5} for i in (0, 8)]
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    paths = FIGURES["4"](base, tmp_path, [])
    assert [path.name for path in paths] == ["figure4.png", "figure4.svg"]
    assert paths[0].read_bytes().startswith(b"\x89PNG") and paths[1].read_text().startswith("<?xml")
