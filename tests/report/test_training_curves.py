"""The curves against metrics.json as Detectron2 writes it, and what the figures show."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from person_search.errors import DatasetError
from person_search.report.training_curves import (
    draw_curves,
    iterations_per_epoch,
    learning_rate_steps,
    loss_figure,
    pseudo_label_figure,
    read_metrics,
    save_figure,
)

from ..figures import readable_texts

LOSSES = (
    "loss_rpn_cls", "loss_rpn_loc",
    "loss_box_head_cls", "loss_box_head_box", "loss_reid_head_cls", "loss_reid_head_box",
    "loss_scale", "loss_cluster_instance", "loss_cluster_multi_scale",
    "loss_multi_label_instance", "loss_multi_label_multi_scale",
)  # fmt: skip
EPOCH = 40


def write(path: Path, entries: Sequence[dict]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def training(epochs: int = 6, identities: bool = True, losses: Sequence[str] = LOSSES) -> list[dict]:
    """What a training logs, in short: a line at the start of each epoch and one every ten iterations."""
    entries = []
    for iteration in range(epochs * EPOCH):
        epoch, entry = iteration // EPOCH, {}
        if iteration % EPOCH == 0:
            entry |= {"pseudo_labels/clusters": 20.0 + epoch, "pseudo_labels/singletons": 90.0 - epoch}
            if identities:
                entry |= {f"pseudo_labels/{kind}_precision": 0.5 + 0.05 * epoch for kind in ("cluster", "multi_label")}
                entry |= {f"pseudo_labels/{kind}_recall": 0.2 + 0.05 * epoch for kind in ("cluster", "multi_label")}
        if iteration % 10 == 9:
            entry |= {name: number + 2.0 - iteration / 1000 for number, name in enumerate(losses)}
            rate = 0.02 * min(1.0, (iteration + 1) / 30) * (0.1 if iteration >= 4 * EPOCH else 1)
            entry |= {"total_loss": 9.0, "lr": rate, "pseudo_labels/threshold": 0.6 + 0.1 * math.exp(-0.1 * epoch)}
        if entry:
            entries.append({"iteration": iteration, **entry})
    return entries


@pytest.fixture
def metrics(tmp_path: Path) -> dict:
    return read_metrics(write(tmp_path / "metrics.json", training()))


def titles(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def panel(figure: Figure, title: str):
    return figure.axes[titles(figure).index(title)]


# ---------------------------------------------------------------------- reading


def test_reads_what_detectron2_writes(tmp_path):
    with EventStorage(0) as storage:
        writer = JSONWriter(str(tmp_path / "metrics.json"), window_size=1)
        for iteration in range(6):
            storage.iter = iteration
            storage.put_scalar("loss_scale", 3.0 - iteration)
            if iteration == 2:
                storage.put_scalar("pseudo_labels/clusters", 7, smoothing_hint=False)
            if iteration % 2:
                writer.write()
        writer.close()
    metrics = read_metrics(tmp_path / "metrics.json")
    assert metrics["loss_scale"][0].tolist() == [1, 3, 5]
    assert metrics["loss_scale"][1].tolist() == [2.0, 0.0, -2.0]
    assert [values.tolist() for values in metrics["pseudo_labels/clusters"]] == [[2], [7.0]]


def test_a_line_that_is_being_written_is_left_out(tmp_path):
    file = write(tmp_path / "metrics.json", [{"iteration": 1, "lr": 0.1}, {"iteration": 2, "lr": 0.2}])
    file.write_text(file.read_text() + '{"iteration": 3, "l')
    assert read_metrics(file)["lr"][0].tolist() == [1, 2]


@pytest.mark.parametrize("line", ["{", "3", "[]", '{"lr": 1}', '{"iteration": null}'])
def test_a_damaged_line_is_named(tmp_path, line):
    file = tmp_path / "metrics.json"
    file.write_text('{"iteration": 0, "lr": 1}\n' + line + '\n{"iteration": 2, "lr": 1}\n')
    with pytest.raises(DatasetError, match=r"metrics.json, line 2: .*remove the line"):
        read_metrics(file)


@pytest.mark.parametrize("content", ["", "\n", '{"iterat'])
def test_a_file_without_metrics_is_refused(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(DatasetError, match="holds no metrics yet"):
        read_metrics(tmp_path / "metrics.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"metrics.json cannot be read .*output folder of a training"):
        read_metrics(tmp_path / "metrics.json")


def test_a_run_that_was_started_again_replaces_the_old_one(tmp_path):
    first = [{"iteration": i, "lr": 1.0, "other": 5.0} for i in range(0, 100, 10)]
    again = [{"iteration": i, "lr": 2.0} for i in range(0, 30, 10)]
    metrics = read_metrics(write(tmp_path / "metrics.json", first + again))
    assert metrics["lr"][0].tolist() == [0, 10, 20]
    assert metrics["lr"][1].tolist() == [2.0] * 3


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(-5, 5)), min_size=1, max_size=30))
def test_iterations_rise_and_end_with_the_last_line(tmp_path_factory, points):
    file = tmp_path_factory.mktemp("m") / "metrics.json"
    iterations, values = read_metrics(write(file, [{"iteration": i, "v": v} for i, v in points]))["v"]
    assert (np.diff(iterations) > 0).all()
    assert (iterations[-1], values[-1]) == points[-1]
    # What is kept was not followed by an earlier or equal iteration.
    kept = [(i, v) for n, (i, v) in enumerate(points) if all(later > i for later, _ in points[n + 1 :])]
    assert list(zip(iterations.tolist(), values.tolist(), strict=True)) == kept


def test_values_that_are_no_numbers_are_left_out(tmp_path):
    metrics = read_metrics(write(tmp_path / "metrics.json", [{"iteration": 0, "lr": 1.0, "note": "x", "none": None}]))
    assert list(metrics) == ["lr"]


# ---------------------------------------------------------------------- what is derived


@pytest.mark.parametrize(
    ("clusterings", "period", "expected"),
    [
        ([0, 80, 160], 1, 80),
        ([0, 80, 160], 2, 40),
        ([160, 240], 1, 80),
        ([16, 32, 56], 1, 8),
        ([0], 1, None),
        ([], 1, None),
    ],
)
def test_length_of_an_epoch(clusterings, period, expected):
    series = (np.array(clusterings, np.int64), np.zeros(len(clusterings)))
    assert iterations_per_epoch({"pseudo_labels/clusters": series} if clusterings else {}, period) == expected


def test_learning_rate_steps():
    iterations = np.arange(19, 200, 20)
    rates = np.array([0.1, 0.4, 1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])
    assert learning_rate_steps({"lr": (iterations, rates)}) == [100, 160]
    cosine = 0.5 * (1 + np.cos(np.linspace(0, 2.5, 60)))
    assert learning_rate_steps({"lr": (np.arange(60), cosine)}) == []
    to_its_end = 0.5 * (1 + np.cos(np.linspace(0, np.pi, 20)))
    assert learning_rate_steps({"lr": (np.arange(20), to_its_end)}) == []
    assert learning_rate_steps({"lr": (np.arange(2), np.array([1, 0.1]))}) == [1]
    assert learning_rate_steps({}) == []


# ---------------------------------------------------------------------- the figures


def test_every_loss_has_a_panel_with_its_values(metrics):
    figure = loss_figure(metrics, EPOCH)
    assert len(figure.axes) == len(LOSSES) + 2
    notes = [axes.texts[0].get_text() for axes in figure.axes]
    assert sorted(notes) == sorted([*LOSSES, "total_loss", "lr"])
    for axes, name in zip(figure.axes, notes, strict=True):
        np.testing.assert_allclose(axes.lines[0].get_xdata(), metrics[name][0] / EPOCH)
        np.testing.assert_allclose(axes.lines[0].get_ydata(), metrics[name][1])
        marks = [line.get_xdata()[0] for line in axes.lines[1:]]
        assert marks == [4.0]  # the learning-rate step, at the start of epoch 4
    assert figure.get_supxlabel() == "epoch"


def test_losses_of_other_names_and_iterations_without_epochs(tmp_path):
    entries = training(epochs=1, losses=["loss_of_my_own", "loss_scale"])
    figure = loss_figure(read_metrics(write(tmp_path / "metrics.json", entries)))
    assert titles(figure) == ["sum of all losses", "learning rate", "scale-invariant loss", "loss_of_my_own"]
    assert figure.get_supxlabel() == "iteration"
    np.testing.assert_array_equal(figure.axes[-1].lines[0].get_xdata(), [9, 19, 29, 39])


def test_a_wide_range_is_drawn_logarithmically(tmp_path):
    values = {"loss_scale": [90.0, 9.0, 0.9], "loss_rpn_cls": [2.0, 1.0, 0.5], "loss_rpn_loc": [90.0, 0.0, 1.0]}
    entries = [{"iteration": i, **{name: series[i] for name, series in values.items()}} for i in range(3)]
    figure = loss_figure(read_metrics(write(tmp_path / "metrics.json", entries)))
    scales = {axes.texts[0].get_text(): axes.get_yscale() for axes in figure.axes}
    assert scales == {"loss_scale": "log", "loss_rpn_cls": "linear", "loss_rpn_loc": "linear"}
    assert panel(figure, "RPN objectness").get_ylim()[0] == 0


def test_the_first_point_of_a_run_is_visible(tmp_path):
    file = write(tmp_path / "metrics.json", [{"iteration": 19, "loss_scale": 1.0, "lr": 0.1}])
    figure = loss_figure(read_metrics(file))
    assert all(axes.lines[0].get_marker() == "o" for axes in figure.axes)


def test_without_losses_there_are_no_curves(tmp_path):
    with pytest.raises(DatasetError, match="no loss"):
        loss_figure(read_metrics(write(tmp_path / "metrics.json", [{"iteration": 0, "untrained/search/mAP": 5.0}])))


def test_pseudo_labels_with_identities(metrics):
    figure = pseudo_label_figure(metrics, EPOCH)
    assert titles(figure) == ["Cluster labels", "Multi-labels", "Clusters and singletons", "Multi-label threshold"]
    for title, kind in (("Cluster labels", "cluster"), ("Multi-labels", "multi_label")):
        lines = {line.get_label(): line for line in panel(figure, title).lines}
        assert list(lines) == ["precision", "recall"]
        assert lines["precision"].get_color() != lines["recall"].get_color()
        for label, line in lines.items():
            np.testing.assert_allclose(line.get_xdata(), np.arange(6))
            np.testing.assert_allclose(line.get_ydata(), 100 * metrics[f"pseudo_labels/{kind}_{label}"][1])
    clusters = panel(figure, "Clusters and singletons").lines
    np.testing.assert_allclose(clusters[0].get_ydata(), 20 + np.arange(6))
    np.testing.assert_allclose(clusters[1].get_ydata(), 90 - np.arange(6))


def test_without_identities_there_is_no_precision(tmp_path):
    metrics = read_metrics(write(tmp_path / "metrics.json", training(identities=False)))
    assert titles(pseudo_label_figure(metrics, EPOCH)) == ["Clusters and singletons", "Multi-label threshold"]
    bare = {name: series for name, series in metrics.items() if "pseudo_labels" not in name}
    assert pseudo_label_figure(bare) is None


@pytest.mark.parametrize("epochs", [1, 6, 26])
def test_no_text_covers_another(tmp_path, epochs):
    metrics = read_metrics(write(tmp_path / "metrics.json", training(epochs)))
    epoch = iterations_per_epoch(metrics)
    for figure in (loss_figure(metrics, epoch), pseudo_label_figure(metrics, epoch)):
        assert len(readable_texts(figure)) > 5


# ---------------------------------------------------------------------- the files


def test_pictures_show_both_colors(tmp_path):
    file = write(tmp_path / "metrics.json", training())
    drawn = draw_curves(file, tmp_path / "new" / "pictures")
    assert [path.name for path in drawn] == ["loss_curves.png", "pseudo_labels.png"]
    assert sorted(p.name for p in (tmp_path / "new" / "pictures").iterdir()) == [p.name for p in drawn]
    for path in drawn:
        pixels = cv2.imread(str(path))[:, :, ::-1].reshape(-1, 3).astype(int)
        for color in ("#0072B2", "#D55E00"):
            near = np.abs(pixels - 255 * np.array(to_rgb(color))).max(axis=1) < 8
            assert near.sum() > 500, (path.name, color)


def test_the_clustering_period_counts(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("person_search.report.training_curves.loss_figure", lambda metrics, epoch: seen.append(epoch))
    draw_curves(write(tmp_path / "metrics.json", training()), tmp_path, clustering_period=2)
    assert seen == [EPOCH / 2]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="cannot write"):
        save_figure(Figure(), tmp_path / "file" / "picture.png")
