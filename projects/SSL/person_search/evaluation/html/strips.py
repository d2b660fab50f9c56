"""Strips of crops: a query and its best detections, each as a small JPEG inside the page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ...errors import DatasetError
from ..crops import ReadFrame, crop_box

CELL_HEIGHT, CELL_WIDTH = 224, 112
"""Pixels of a crop: twice as high as wide, which suits most persons."""
_JPEG_QUALITY = 76
_THREADS = 4  # decoding an image takes most of the time, and leaves Python to others


@dataclass(frozen=True)
class Cell:
    """A crop with the box that it is about.

    Attributes:
        kind: "query", "correct" or "wrong".
        entry: the query, or one of its results, as queries.json has it.
        rank: of a result, from 1; 0 for the query.
        image: data URI of the crop; "": its frame cannot be read.
        box: x, y, width, height of the box in pixels of the crop, the part that can be seen.
        alt: what the crop shows, in words.
    """

    kind: str
    entry: Mapping[str, Any]
    rank: int
    image: str
    box: tuple[float, float, float, float]
    alt: str


@dataclass(frozen=True)
class Strips:
    """The strips of some queries.

    Attributes:
        cells: for each query its own cell, then those of its results.
        num_frames: frames that were asked for.
        unreadable: frame name -> why it cannot be read.
    """

    cells: list[list[Cell]]
    num_frames: int
    unreadable: dict[str, str]


def build_strips(rows: Sequence[Mapping[str, Any]], read_frame: ReadFrame) -> Strips:
    """Cuts the crops of some queries and of their results; each frame is read once, however often it is shown.

    Args:
        rows: queries, see `read_queries`.
        read_frame: gives the frames. Where it raises DatasetError, the cells say so in place of a crop.
    """
    entries = [[row, *row["results"]] for row in rows]
    wanted: dict[str, list[tuple[int, int]]] = {}
    for number, strip in enumerate(entries):
        for rank, entry in enumerate(strip):
            wanted.setdefault(entry["frame"], []).append((number, rank))

    def cut(name: str) -> tuple[list[Cell], str]:
        """The cells of one frame, and why it cannot be read."""
        try:
            frame, reason = read_frame(name), ""
        except DatasetError as error:
            frame, reason = None, str(error)
        return [_cell(entries[number][rank], rank, frame) for number, rank in wanted[name]], reason

    names = sorted(wanted)  # the frames of a video in their order
    cells: list[dict[int, Cell]] = [{} for _ in entries]
    unreadable = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        frames = tqdm(pool.map(cut, names), total=len(names), desc="report", unit="frame", delay=2)
        for name, (cut_cells, reason) in zip(names, frames, strict=True):
            for (number, rank), cell in zip(wanted[name], cut_cells, strict=True):
                cells[number][rank] = cell
            if reason:
                unreadable[name] = reason
    return Strips([[strip[rank] for rank in sorted(strip)] for strip in cells], len(names), unreadable)


def _cell(entry: Mapping[str, Any], rank: int, frame: np.ndarray | None) -> Cell:
    kind = ("correct" if entry["correct"] else "wrong") if rank else "query"
    alt = f"Rank {rank}, {kind}: detection in frame {entry['frame']}" if rank else f"Query in frame {entry['frame']}"
    if frame is None:
        return Cell(kind, entry, rank, "", (0, 0, 0, 0), alt)
    crop, box = crop_box(frame, entry["box"], CELL_HEIGHT, CELL_WIDTH)
    # The line of a box that fills the crop would lie half outside.
    x0, y0 = np.clip(box[:2], 2, [CELL_WIDTH - 2, CELL_HEIGHT - 2])
    x1, y1 = np.clip(box[2:], 2, [CELL_WIDTH - 2, CELL_HEIGHT - 2])
    place = tuple(round(float(value), 1) for value in (x0, y0, x1 - x0, y1 - y0))
    return Cell(kind, entry, rank, _data_uri(crop), place, alt)


def _data_uri(image: np.ndarray) -> str:
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
