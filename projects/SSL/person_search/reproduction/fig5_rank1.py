"""Figure 5: first results of two trainings side by side, where they differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..data.images import frame_reader
from ..errors import DatasetError
from ..report.pictures import CELL, draw_cell, legend_handles
from ..report.strips import ReadFrame
from .compared import save_both

_BLOCKS, _ROWS = 2, 3
Rows = Sequence[Mapping[str, Any]]


def common_queries(first: Rows, second: Rows) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Queries that both trainings have, with the results of each.

    Raises:
        DatasetError: there are none.
    """

    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return row["frame"], *row["box"]

    of_second = {key(row): row for row in second}
    both = [(row, of_second[key(row)]) for row in first if key(row) in of_second]
    if not both:
        raise DatasetError("the two trainings have no queries in common: evaluate both on the same dataset")
    return both


def choose_differing(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], count: int) -> list[int]:
    """Queries to show, chosen without favouring either training.

    Queries for which only the first result of the second training is correct, and queries for which only that of the
    first is, are chosen in proportion to their numbers, in each group by the largest difference of AP. If too few
    differ, the rest are the queries with the largest difference of AP.

    Args:
        pairs: see `common_queries`.
        count: number of queries.

    Returns:
        indices, those where the second is better first.
    """
    correct = np.array([[bool(row["results"]) and row["results"][0]["correct"] for row in pair] for pair in pairs])
    gain = np.array([(b["AP"] or 0.0) - (a["AP"] or 0.0) for a, b in pairs])
    order = np.argsort(-np.abs(gain), kind="stable")
    better = [i for i in order if correct[i, 1] and not correct[i, 0]]
    worse = [i for i in order if correct[i, 0] and not correct[i, 1]]
    differing = len(better) + len(worse)
    # At least one of each group that is not empty, however small.
    share = round(count * len(better) / differing) if differing else 0
    share = int(np.clip(share, min(1, len(better)), count - min(1, len(worse))))
    chosen = better[:share] + worse[: count - min(share, len(better))]
    chosen += [i for i in order if i not in chosen][: count - len(chosen)]
    return [int(i) for i in sorted(chosen, key=lambda i: (-int(correct[i, 1]) + int(correct[i, 0]), -gain[i]))]


def rank1_figure(runs: Mapping[str, Rows], read_frame: ReadFrame, count: int = _BLOCKS * _ROWS) -> Figure:
    """Queries with the first results of two trainings, in blocks of three rows.

    Args:
        runs: queries of two trainings by title, see `read_queries`.
        read_frame: returns a frame.
        count: number of queries to show.
    """
    (first, second), titles = runs.values(), list(runs)
    pairs = common_queries(first, second)
    chosen = choose_differing(pairs, min(count, len(pairs)))
    rows = -(-len(chosen) // _BLOCKS)
    gap, caption, header, block = 0.2, 0.46, 1.0, 0.5
    block_width = 3 * (CELL[0] + gap) + block
    width, height = _BLOCKS * block_width + 0.1, header + rows * (CELL[1] + caption)
    figure = Figure(figsize=(width, height))
    for number, index in enumerate(chosen):
        column, line = divmod(number, rows)
        bottom = height - header - (line + 1) * (CELL[1] + caption) + caption
        for place, (row, rank) in enumerate([(pairs[index][0], 0), (pairs[index][0], 1), (pairs[index][1], 1)]):
            left = 0.2 + column * block_width + place * (CELL[0] + gap)
            axes = figure.add_axes((left / width, bottom / height, CELL[0] / width, CELL[1] / height))
            draw_cell(axes, row, rank, read_frame)
            if not line:
                axes.set_title(["query", *titles][place], fontsize=10)
    figure.text(0.2 / width, 1 - 0.12 / height, _counts(pairs, titles), fontsize=10, va="top", linespacing=1.4)
    figure.legend(handles=legend_handles(), loc="upper right", fontsize=9.5, frameon=False, bbox_to_anchor=(1, 1))
    return figure


def draw_rank1(runs: Mapping[str, Rows], records: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Writes figure5.png and figure5.svg and returns their paths; see `rank1_figure`."""
    return save_both(rank1_figure(runs, frame_reader(records)), folder / "figure5")


def _counts(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]], titles: Sequence[str]) -> str:
    correct = np.array([[bool(row["results"]) and row["results"][0]["correct"] for row in pair] for pair in pairs])
    first, second = correct.T
    return (
        f"first result of {len(pairs)} queries: correct with both {(first & second).sum()},\n"
        f"with {titles[1]!r} alone {(second & ~first).sum()}, with {titles[0]!r} alone {(first & ~second).sum()}, "
        f"with neither {(~first & ~second).sum()}"
    )
