"""Pictures of search results: for some queries the best detections, as a sheet of crops and as whole scenes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from .storage import replacing
from ..data.images import read_image
from ..errors import DatasetError

ReadFrame = Callable[[str], np.ndarray]
"""Gives a frame, uint8 (H, W, 3) RGB, by its name."""

# Blue and orange differ for colour-blind eyes too; each is also marked by a sign, so that grey prints can be read.
CORRECT, WRONG, QUERY = "#0A7CFF", "#F0640A", "#222222"
_SIGNS = {True: "✓", False: "✗"}
_PADDING = 235  # grey level beyond a frame's edge
_CELL = (1.15, 2.3)  # inches of a crop
_CELL_HEIGHT = 400  # pixels of a crop
_CONTEXT = 1.3  # a crop shows this many times the box's height, or width where that is what limits it
_SCENE_COLUMNS = 3
_DPI = 130


def read_queries(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads queries.json, which the evaluator writes.

    Returns:
        One mapping a query, see `results.query_rows`.

    Raises:
        DatasetError: the file is missing, no such file, or holds no query.
    """
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in rows:
            _check_query(row)
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); an evaluation of a search writes it") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{path} is not the evaluator's queries.json ({error!r}); evaluate again") from error
    if not rows:
        raise DatasetError(f"{path} holds no query: nothing was searched, so there is nothing to draw")
    return rows


def _check_query(row: Mapping[str, Any]) -> None:
    for box in (row, *row["results"]):
        if len(box["box"]) != 4 or not isinstance(box["frame"], str):
            raise ValueError(f"box {box['box']} in frame {box['frame']}")
    for result in row["results"]:
        float(result["similarity"]), bool(result["correct"])
    row["AP"], row["matches"], row["matches_found"]  # noqa: B018


def choose_queries(rows: Sequence[Mapping[str, Any]], count: int) -> list[int]:
    """Queries that stand for all: evenly spaced in the order of falling average precision, best and worst among them.

    Args:
        rows: see `read_queries`. Queries without a match to find are chosen only where there are no others.
        count: at most this many.

    Returns:
        indices of rows, the best first; queries of equal AP in their stored order.
    """
    ranked = [index for index, row in enumerate(rows) if row["AP"] is not None] or list(range(len(rows)))
    ranked.sort(key=lambda index: -(rows[index]["AP"] or 0.0))
    if count < 2:
        return ranked[: max(count, 0)]
    return [ranked[i] for i in np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))]


def crop_box(frame: np.ndarray, box: Sequence[float], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts out a box with some context, in the proportions of a cell, and scales it to the cell's size.

    The cut is moved into the frame as far as possible; what still lies beyond its edge is light grey.

    Args:
        frame: (H, W, 3) uint8.
        box: (x0, y0, x1, y1) in pixels of the frame.
        height, width: of the cell, in pixels.

    Returns:
        The cell (height, width, 3) uint8, and the box (4,) in its pixels.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    scale = min(height / max(y1 - y0, 1.0), width / max(x1 - x0, 1.0)) / _CONTEXT
    cut_width, cut_height = width / scale, height / scale
    left = _moved_inside((x0 + x1 - cut_width) / 2, cut_width, frame.shape[1])
    top = _moved_inside((y0 + y1 - cut_height) / 2, cut_height, frame.shape[0])
    # Between pixel centres, where warpAffine counts, and pixel edges, where boxes do, lies half a pixel.
    half = 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, half - left * scale], [0, scale, half - top * scale]])
    # Repeated and then painted over, so that the frame's last pixels do not blend with the grey beyond.
    cell = cv2.warpAffine(_smoothed(frame, scale), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    column, row = left + (np.arange(width) + 0.5) / scale, top + (np.arange(height) + 0.5) / scale
    cell[:, (column < 0) | (column > frame.shape[1])] = _PADDING
    cell[(row < 0) | (row > frame.shape[0])] = _PADDING
    return cell, (np.array([x0, y0, x1, y1]) - [left, top, left, top]) * scale


def _moved_inside(start: float, length: float, size: int) -> float:
    return (size - length) / 2 if length >= size else min(max(start, 0.0), size - length)


def _smoothed(frame: np.ndarray, scale: float) -> np.ndarray:
    # Bilinear sampling alone would skip pixels of persons that are larger than the cell.
    return cv2.GaussianBlur(frame, (0, 0), 0.4 / scale) if scale < 0.7 else frame


def results_sheet(
    rows: Sequence[Mapping[str, Any]], read_frame: ReadFrame, ranks: int = 5, title: str = ""
) -> Figure:
    """A row for each query: the query, and its best detections, correct and wrong in two colours.

    Args:
        rows: the queries to draw, see `read_queries`.
        read_frame: gives the frames.
        ranks: detections of a query.
        title: above the sheet.
    """
    margin, header, footer, caption = 1.35, 0.72, 0.1, 0.42
    width, height = margin + (ranks + 1) * (_CELL[0] + 0.12) + 0.25, header + len(rows) * (_CELL[1] + caption) + footer
    figure = Figure(figsize=(width, height))
    for number, row in enumerate(rows):
        bottom = height - header - (number + 1) * (_CELL[1] + caption) + caption
        for column in range(ranks + 1):
            left = margin + column * (_CELL[0] + 0.12) + (0.25 if column else 0)
            axes = figure.add_axes((left / width, bottom / height, _CELL[0] / width, _CELL[1] / height))
            _draw_cell(axes, row, column, read_frame)
            if not number:
                axes.set_title("query" if not column else f"rank {column}", fontsize=10)
        middle = (bottom + _CELL[1] / 2) / height
        figure.text(0.12 / width, middle, _figures(row, "\n"), fontsize=10, va="center", linespacing=1.6)
    figure.text(0.12 / width, 1 - 0.14 / height, title, fontsize=11, va="top")
    figure.legend(handles=_legend(), loc="upper right", ncols=3, fontsize=10, frameon=False, bbox_to_anchor=(1, 1))
    return figure


def results_scenes(row: Mapping[str, Any], read_frame: ReadFrame, ranks: int = 5) -> Figure:
    """The whole frames of one query and of its best detections, with the boxes drawn.

    Args:
        row: the query, see `read_queries`.
        read_frame: gives the frames.
        ranks: detections.
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
    figure.suptitle(_figures(row, " "), fontsize=11, x=0.005, ha="left")
    figure.legend(handles=_legend(), loc="outside upper right", ncols=3, fontsize=10, frameon=False)
    return figure


def draw_search_results(
    queries_file: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    folder: str | os.PathLike[str],
    queries: int = 6,
    scenes: int = 0,
    ranks: int = 5,
) -> list[Path]:
    """Draws search_results.png and search_scenes_1.png ... of some queries from the best to the worst.

    Args:
        queries_file: queries.json of an evaluation.
        records: the evaluated dataset, for its frames.
        folder: where the pictures go; made where it is missing.
        queries: rows of the sheet.
        scenes: queries that are drawn as whole scenes as well, one picture each.
        ranks: detections of a query, at most ten.

    Returns:
        paths of the pictures.

    Raises:
        DatasetError: queries.json or a frame cannot be read, or names a frame that the dataset has not.
    """
    rows, folder = read_queries(queries_file), Path(folder)
    files = {record["image_id"]: record["file_name"] for record in records}

    def read_frame(name: str) -> np.ndarray:
        if name not in files:
            raise DatasetError(f"{queries_file}: frame {name} is not in the dataset; evaluate again on the present one")
        return read_image(files[name])

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


def _draw_cell(axes: Axes, row: Mapping[str, Any], column: int, read_frame: ReadFrame) -> None:
    if column > len(row["results"]):
        return _show_none(axes)
    entry = row["results"][column - 1] if column else row
    size = (_CELL_HEIGHT, round(_CELL_HEIGHT * _CELL[0] / _CELL[1]))
    _show(axes, *crop_box(read_frame(entry["frame"]), entry["box"], *size), _color(entry))
    axes.text(0.5, -0.025, _caption(entry, column), transform=axes.transAxes, ha="center", va="top", fontsize=9.5,
              color=_color(entry), weight="bold")  # fmt: skip
    axes.text(0.5, -0.1, _shortened(entry["frame"], 18), transform=axes.transAxes, ha="center", va="top", fontsize=7)


def _show_none(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.5, 0.5, "no further\ndetection", ha="center", va="center", fontsize=9, color="#888888")


def _show(axes: Axes, image: np.ndarray, box: np.ndarray, color: str) -> None:
    """Shows an image, framed in the colour, with the box (x0, y0, x1, y1) in its pixels."""
    # Pixel edges at whole numbers, as boxes have them.
    axes.imshow(image, extent=(0, image.shape[1], image.shape[0], 0), interpolation="antialiased")
    outline = [patheffects.Stroke(linewidth=3.6, foreground="white"), patheffects.Normal()]
    x0, y0, x1, y1 = box
    style = {"fill": False, "edgecolor": color, "linewidth": 2, "path_effects": outline}
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


def _figures(row: Mapping[str, Any], gap: str) -> str:
    if row["AP"] is None:
        return f"no match{gap}to find"
    return f"AP {100 * row['AP']:.1f} %,{gap}{row['matches_found']} of {row['matches']}{gap}matches found"


def _summary(rows: Sequence[Mapping[str, Any]], drawn: int) -> str:
    known = [row["AP"] for row in rows if row["AP"] is not None]
    mean = f"; mAP over all {100 * np.mean(known):.1f} %" if known else ""
    return f"{drawn} of {len(rows)} queries, the best first{mean}"


def _legend() -> list[Patch]:
    names = {"query": QUERY, "correct ✓": CORRECT, "wrong ✗": WRONG}
    return [Patch(facecolor="none", edgecolor=color, linewidth=2, label=name) for name, color in names.items()]
