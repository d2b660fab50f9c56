"""Figure 6: mAP against the size of the gallery."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..evaluation import SearchOptions, SearchProblem, evaluate_galleries
from ..evaluation.problem import Galleries, offsets_of, with_galleries
from ..report.palette import tidy
from .compared import STYLES, save_both

TARGETS = 5
_SIZES = 6


def searched_frames(problem: SearchProblem, galleries: Galleries, query: int) -> np.ndarray:
    """Frames (n,) int64 to search for a query, ascending."""
    if galleries.frame is not None and galleries.frame_offset is not None:
        return np.unique(galleries.frame[galleries.frame_offset[query] : galleries.frame_offset[query + 1]])
    assert galleries.excluded_frame is not None  # as no frames are listed
    searched = np.arange(len(problem.frame_name)) != galleries.excluded_frame[query]
    if galleries.other_cameras_only:
        assert problem.frame_camera is not None
        searched &= problem.frame_camera != problem.frame_camera[problem.query_frame[query]]
    return np.flatnonzero(searched)


def nested_galleries(
    problem: SearchProblem, sizes: Sequence[int] = (), targets: int = TARGETS, seed: int = 0
) -> tuple[SearchProblem, list[int]]:
    """Search problem with galleries of several sizes, sampled from its main one.

    A gallery has at most `targets` frames that show the person, the same at every size; the others do not show the
    person. Larger galleries contain smaller ones, so only the number of distractors grows with the size.

    Args:
        problem: search problem with at least one gallery.
        sizes: numbers of frames; () for six in a geometric progression from 2 x `targets` to the number that at least
            half of the queries have.
        targets: maximum number of frames with the person.
        seed: seed of the sampling.

    Returns:
        The problem, with the queries that have a match and enough frames, and galleries named by their size; and the
        sizes, ascending.
    """
    galleries = problem.galleries[problem.gallery_name()]
    generator = np.random.default_rng(seed)
    rows, frames = [], []
    for query in range(len(problem.query_frame)):
        own = np.arange(galleries.target_offset[query], galleries.target_offset[query + 1])
        searched = searched_frames(problem, galleries, query)
        others = np.setdiff1d(searched, galleries.target_frame[own])
        rows.append(np.sort(generator.permutation(own)[:targets]))
        frames.append(np.concatenate([galleries.target_frame[rows[-1]], generator.permutation(others)]))
    length = np.array([len(f) if len(r) else 0 for f, r in zip(frames, rows, strict=True)])
    sizes = sorted(sizes) or _default_sizes(length, targets)
    kept = np.flatnonzero(length >= sizes[-1])
    reduced = replace(
        problem,
        query_frame=problem.query_frame[kept],
        query_box=problem.query_box[kept],
        query_person_id=problem.query_person_id[kept],
        query_feature=problem.query_feature[kept],
        galleries={},
        main_gallery="",
    )
    nested = {str(size): _cut(galleries, [rows[q] for q in kept], [frames[q][:size] for q in kept]) for size in sizes}
    return with_galleries(reduced, nested), sizes


def has_sizes(problem: SearchProblem) -> bool:
    """Whether the protocol has galleries of several sizes, named by their number of frames (CUHK-SYSU)."""
    return sum(name.isdecimal() for name in problem.galleries) > 1


def map_by_size(problem: SearchProblem, options: SearchOptions) -> dict[int, float]:
    """mAP in percent at each gallery size, ascending.

    Args:
        problem: search problem; galleries are sampled from the main one unless it `has_sizes`.
        options: search options.
    """
    if has_sizes(problem):
        problem = with_galleries(problem, {name: g for name, g in problem.galleries.items() if name.isdecimal()})
    else:
        problem, _ = nested_galleries(problem)
    results = evaluate_galleries(problem, options)
    return {size: 100 * results[str(size)].mAP for size in sorted(int(name) for name in results)}


def _default_sizes(length: np.ndarray, targets: int) -> list[int]:
    most = int(np.median(length[length > 0])) if length.any() else 1
    return np.unique(np.geomspace(min(2 * targets, most), most, _SIZES).round().astype(int)).tolist()


def _cut(galleries: Galleries, rows: Sequence[np.ndarray], frames: Sequence[np.ndarray]) -> Galleries:
    target = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    count = np.array([len(r) for r in rows], np.int64)
    return Galleries(
        target_offset=offsets_of(count),
        target_frame=galleries.target_frame[target],
        target_box=galleries.target_box[target],
        target_count=count,
        frame_offset=offsets_of(np.array([len(f) for f in frames], np.int64)),
        frame=np.concatenate(frames) if frames else np.zeros(0, np.int64),
    )


def gallery_figure(runs: Mapping[str, Sequence[Mapping[int, float]]], title: str) -> Figure:
    """A line for each kind of training: mean mAP over its seeds at each gallery size, with the sample deviation.

    Args:
        runs: mAP in percent by size for each seed, by title; all on one dataset.
        title: title of the figure.
    """
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.add_subplot()
    sizes = sorted(set.union(*(set(one) for seeds in runs.values() for one in seeds)))
    for number, ((label, seeds), style) in enumerate(zip(runs.items(), STYLES, strict=False)):
        color, dashes, marker = style
        common = sorted(set.intersection(*(set(one) for one in seeds)))
        values = np.array([[one[size] for size in common] for one in seeds])
        deviation = values.std(axis=0, ddof=1) if len(seeds) > 1 else None
        # Slightly shifted, so that error bars of different trainings do not overlap.
        place = np.array(common) * 1.012 ** (number - (len(runs) - 1) / 2)
        axes.errorbar(place, values.mean(axis=0), deviation, color=color, linestyle=dashes, marker=marker,
                      markersize=6, linewidth=1.8, capsize=3, label=label)  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    tidy(axes)
    axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
    axes.set_xlabel("frames in the gallery of a query", fontsize=11)
    axes.set_ylabel("mAP, %", fontsize=11)
    axes.set_title(title, fontsize=10.5, loc="left")
    axes.legend(fontsize=10.5, handlelength=3.5, frameon=False)
    return figure


def draw_gallery_sizes(runs: Mapping[str, Sequence[Mapping[int, float]]], title: str, folder: Path) -> list[Path]:
    """Writes figure6.png and figure6.svg and returns their paths; see `gallery_figure`."""
    return save_both(gallery_figure(runs, title), folder / "figure6")
