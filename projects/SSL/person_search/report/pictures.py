"""Pictures of search results: the best detections of queries, as a sheet of crops and as whole scenes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from ..data.images import frame_reader
from ..evaluation.analysis import choose_queries, read_queries
from ..io import replacing
from .palette import CORRECT, GREY, QUERY, WRONG
from .strips import ReadFrame, crop_box

# In addition to the colors, for grey prints.
_SIGNS = {True: "✓", False: "✗"}
CELL = (1.15, 2.3)  # inches of a crop
_CELL_HEIGHT = 400  # pixels of a crop
_SCENE_COLUMNS = 3
_DPI = 130


def results_sheet(rows: Sequence[Mapping[str, Any]], read_frame: ReadFrame, ranks: int = 5, title: str = "") -> Figure:
    """Sheet with a row for each query: the query and its best detections, correct and wrong ones in two colors.

    Args:
        rows: queries to draw, see `read_queries`.
        read_frame: returns a frame.
        ranks: number of detections per query.
        title: title of the sheet.
    """
    margin, header, footer, caption = 1.35, 0.72, 0.1, 0.42
    width, height = margin + (ranks + 1) * (CELL[0] + 0.12) + 0.25, header + len(rows) * (CELL[1] + caption) + footer
    figure = Figure(figsize=(width, height))
    for number, row in enumerate(rows):
        bottom = height - header - (number + 1) * (CELL[1] + caption) + caption
        for column in range(ranks + 1):
            left = margin + column * (CELL[0] + 0.12) + (0.25 if column else 0)
            axes = figure.add_axes((left / width, bottom / height, CELL[0] / width, CELL[1] / height))
            draw_cell(axes, row, column, read_frame)
            if not number:
                axes.set_title("query" if not column else f"rank {column}", fontsize=10)
        middle = (bottom + CELL[1] / 2) / height
        figure.text(0.12 / width, middle, _metrics(row, "\n"), fontsize=10, va="center", linespacing=1.6)
    figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=11, va="top")
    figure.legend(
        handles=legend_handles(), loc="upper right", ncols=3, fontsize=10, frameon=False, bbox_to_anchor=(1, 1)
    )
    return figure


def results_scenes(row: Mapping[str, Any], read_frame: ReadFrame, ranks: int = 5) -> Figure:
    """Whole frames of a query and of its best detections, with boxes.

    Args:
        row: query, see `read_queries`.
        read_frame: returns a frame.
        ranks: number of detections.
    """
    entries = [row, *row["results"][:ranks]]
    frames = [read_frame(entry["frame"]) for entry in entries]
    lines = -(-(ranks + 1) // _SCENE_COLUMNS)
    proportion = float(np.median([frame.shape[0] / frame.shape[1] for frame in frames]))
    figure = Figure(figsize=(4.6 * _SCENE_COLUMNS, lines * (4.6 * proportion + 0.3) + 0.5), layout="constrained")
    for number in range(ranks + 1):
        axes = figure.add_subplot(lines, _SCENE_COLUMNS, number + 1)
        if number >= len(entries):
            _show_none(axes)
            continue
        entry = entries[number]
        _show(axes, frames[number], np.asarray(entry["box"], float), _color(entry))
        title = f"{_caption(entry, number)}   {_shortened(entry['frame'], 34)}"
        axes.set_title(title, fontsize=10, color=_color(entry), loc="left")
    figure.suptitle(_metrics(row, " "), fontsize=11, x=0.005, ha="left")
    figure.legend(handles=legend_handles(), loc="outside upper right", ncols=3, fontsize=10, frameon=False)
    return figure


def draw_search_results(
    queries_file: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    queries: int = 6,
    scenes: int = 0,
    ranks: int = 5,
) -> list[Path]:
    """Draws search_results.png and search_scenes_1.png ... of queries from the best to the worst.

    Args:
        queries_file: queries.json of an evaluation.
        records: evaluated dataset, for its frames.
        folder: folder of the pictures, created if missing.
        queries: number of rows of the sheet.
        scenes: number of queries to draw as whole scenes as well, one picture each.
        ranks: number of detections per query, at most ten.

    Returns:
        paths of the pictures.

    Raises:
        DatasetError: queries.json or a frame cannot be read, or a frame is not in the dataset.
    """
    rows, folder, read_frame = read_queries(queries_file), Path(folder), frame_reader(records)
    figures = {}
    if queries > 0:
        chosen = [rows[index] for index in choose_queries(rows, queries)]
        figures["search_results.png"] = results_sheet(chosen, read_frame, ranks, _summary(rows, len(chosen)))
    for number, index in enumerate(choose_queries(rows, scenes), 1):
        figures[f"search_scenes_{number}.png"] = results_scenes(rows[index], read_frame, ranks)
    for name, figure in figures.items():
        with replacing(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI)
    return [folder / name for name in figures]


def draw_cell(axes: Axes, row: Mapping[str, Any], column: int, read_frame: ReadFrame) -> None:
    """Draws a crop of a sheet with its caption, in axes with the proportions of `CELL`.

    Args:
        axes: axes to draw into.
        row: query, see `read_queries`.
        column: 0 for the query, k for its k-th result.
        read_frame: returns a frame.
    """
    if column > len(row["results"]):
        return _show_none(axes)
    entry = row["results"][column - 1] if column else row
    size = (_CELL_HEIGHT, round(_CELL_HEIGHT * CELL[0] / CELL[1]))
    _show(axes, *crop_box(read_frame(entry["frame"]), entry["box"], *size), _color(entry))
    axes.text(0.5, -0.025, _caption(entry, column), transform=axes.transAxes, ha="center", va="top", fontsize=9.5,
              color=_color(entry), weight="bold")  # fmt: skip
    axes.text(0.5, -0.1, _shortened(entry["frame"], 18), transform=axes.transAxes, ha="center", va="top", fontsize=7)


def _show_none(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no further\ndetection", ha="center", va="center", fontsize=9, color=GREY)


def _show(axes: Axes, image: np.ndarray, box: np.ndarray, color: str) -> None:
    """Shows an image, framed in the color, with the box (x0, y0, x1, y1) in its pixels."""
    # Pixel edges are at integers, as in boxes.
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="antialiased")
    outline = [patheffects.Stroke(linewidth=3.6, foreground="white"), patheffects.Normal()]
    x0, y0, x1, y1 = box
    style: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 2, "path_effects": outline}
    axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, **style))
    axes.set(xticks=[], yticks=[], xlim=(0, image.shape[1]), ylim=(image.shape[0], 0))
    for spine in axes.spines.values():
        spine.set(edgecolor=color, linewidth=2.5)


def _color(entry: Mapping[str, Any]) -> str:
    if "correct" not in entry:
        return QUERY
    return CORRECT if entry["correct"] else WRONG


def _caption(entry: Mapping[str, Any], rank: int) -> str:
    return f"{rank}   {_SIGNS[entry['correct']]}  {entry['similarity']:.3f}" if rank else "query"


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else "…" + name[1 - length :]


def _metrics(row: Mapping[str, Any], gap: str) -> str:
    if row["AP"] is None:
        return f"no match{gap}to find"
    return f"AP {100 * row['AP']:.1f} %,{gap}{row['matches_found']} of {row['matches']}{gap}matches found"


def _summary(rows: Sequence[Mapping[str, Any]], drawn: int) -> str:
    known = [row["AP"] for row in rows if row["AP"] is not None]
    mean = f"; mAP over all {100 * np.mean(known):.1f} %" if known else ""
    return f"{drawn} of {len(rows)} queries, the best first{mean}"


def legend_handles() -> list[Patch]:
    """Legend handles for the colors of the crops."""
    names = {"query": QUERY, "correct ✓": CORRECT, "wrong ✗": WRONG}
    return [Patch(facecolor="none", edgecolor=color, linewidth=2, label=name) for name, color in names.items()]
