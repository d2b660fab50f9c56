"""Figures of the paper, from finished trainings or from a dataset's annotations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from detectron2.config import CfgNode

from ..data.registration import registered_records
from ..errors import ConfigError
from ..evaluation.analysis import read_queries
from ..report.training_curves import read_metrics
from .compared import STYLES, Compared, evaluated_set, find_compared, search_options, stored_problem
from .fig1_scales import areas_by_identity, draw_scales
from .fig4_labels import draw_labels
from .fig5_rank1 import draw_rank1
from .fig6_galleries import TARGETS, draw_gallery_sizes, has_sizes, map_by_size
from .fig7_tsne import draw_tsne, labelled_features

_PAIR = ("baseline", "ssl")
_TABLE_1 = ("baseline", "dml", "sl", "ssl")


def draw_scale_distribution(base: CfgNode, output: Path, runs: Sequence[str] = ()) -> list[Path]:
    """Figure 1: sizes of each person in training and test set; needs no training."""
    names = [*base.DATASETS.TRAIN, *base.DATASETS.TEST]
    return draw_scales({name: areas_by_identity(registered_records(name)) for name in names}, output)


def draw_pseudo_labels(base: CfgNode, output: Path, runs: Sequence[str] = ()) -> list[Path]:
    """Figure 4: precision and recall of the pseudo labels over the epochs."""
    compared = _few(find_compared(output, runs, _TABLE_1))
    metrics = {one.title: [read_metrics(folder / "metrics.json") for folder in one.folders] for one in compared}
    periods = {one.title: one.config().SSL.CLUSTERING.PERIOD for one in compared}
    return draw_labels(metrics, output, periods)


def draw_rank1_results(base: CfgNode, output: Path, runs: Sequence[str] = ()) -> list[Path]:
    """Figure 5: first results of two trainings, side by side.

    Raises:
        ConfigError: there are not two trainings, or they were evaluated on different data.
    """
    compared = find_compared(output, runs, _PAIR)
    if len(compared) != 2:
        raise ConfigError(f"figure 5 compares two trainings, {len(compared)} are given: --runs baseline ssl")
    name = _common_test_set(compared)
    rows = {one.title: read_queries(one.folders[0] / "inference" / name / "queries.json") for one in compared}
    return draw_rank1(rows, registered_records(name), output)


def draw_gallery_curves(base: CfgNode, output: Path, runs: Sequence[str] = ()) -> list[Path]:
    """Figure 6: mAP against the size of the gallery."""
    compared = _few(find_compared(output, runs, _TABLE_1))
    title, curves, drawn = _common_test_set(compared), {}, False
    for one in compared:
        cfg = one.config()
        options = search_options(cfg)
        problems = [stored_problem(folder, cfg) for folder in one.folders]
        curves[one.title] = [map_by_size(problem, options) for problem in problems]
        drawn = not any(has_sizes(problem) for problem in problems)
    if drawn:
        title += f", drawn galleries with at most {TARGETS} frames of the person"
    return draw_gallery_sizes(curves, title, output)


def draw_features(base: CfgNode, output: Path, runs: Sequence[str] = ()) -> list[Path]:
    """Figure 7: t-SNE of the features of some persons, with a panel for each training (its first seed)."""
    compared = find_compared(output, runs, _PAIR)
    _common_test_set(compared)
    features = {}
    for one in compared:
        cfg = one.config()
        problem = stored_problem(one.folders[0], cfg)
        features[one.title] = labelled_features(problem, cfg.TEST.PERSON_SEARCH.SCORE_THRESHOLD)
    return draw_tsne(features, output)


FIGURES: dict[str, Callable[[CfgNode, Path, Sequence[str]], list[Path]]] = {
    "1": draw_scale_distribution,
    "4": draw_pseudo_labels,
    "5": draw_rank1_results,
    "6": draw_gallery_curves,
    "7": draw_features,
}
"""Functions that draw a figure from a dataset's config, the output folder and --runs, by number."""


def _few(compared: Sequence[Compared]) -> Sequence[Compared]:
    if len(compared) > len(STYLES):
        raise ConfigError(f"--runs names {len(compared)} trainings; more than {len(STYLES)} lines cannot be told apart")
    return compared


def _common_test_set(compared: Sequence[Compared]) -> str:
    names = sorted({evaluated_set(one.config()) for one in compared})
    if len(names) > 1:
        raise ConfigError(f"--runs: the trainings were evaluated on {', '.join(names)}; compare those of one dataset")
    return names[0]
