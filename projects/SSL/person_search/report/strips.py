"""Strips of crops: a query and its best detections, each as a small JPEG embedded in the page."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import DatasetError

ReadFrame = Callable[[str], np.ndarray]
"""Function that returns a frame, uint8 (H, W, 3) RGB, by name."""

_PADDING = 235  # grey level outside the frame
_CONTEXT = 1.3  # height of a crop, or width if that is the limit, as a multiple of the box's


def crop_box(frame: np.ndarray, box: Sequence[float], height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Crop of a box with some context, in the proportions of a cell and scaled to its size.

    The crop is moved into the frame as far as possible; the rest is light grey.

    Args:
        frame: (H, W, 3) uint8.
        box: (x0, y0, x1, y1) in pixels of the frame.
        height, width: size of the cell in pixels.

    Returns:
        The cell (height, width, 3) uint8, and the box (4,) in its pixels.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    scale = min(height / max(y1 - y0, 1.0), width / max(x1 - x0, 1.0)) / _CONTEXT
    cut_width, cut_height = width / scale, height / scale
    left = _moved_inside((x0 + x1 - cut_width) / 2, cut_width, frame.shape[1])
    top = _moved_inside((y0 + y1 - cut_height) / 2, cut_height, frame.shape[0])
    # Only the crop and the pixels needed for smoothing, since frames are large and crops are many.
    margin = int(2 / scale) + 2
    x, y = max(int(left) - margin, 0), max(int(top) - margin, 0)
    part = frame[y : int(top + cut_height) + margin, x : int(left + cut_width) + margin]
    # warpAffine refers to pixel centres, boxes to pixel edges: half a pixel apart.
    half = 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, half - (left - x) * scale], [0, scale, half - (top - y) * scale]])
    # Repeated, then painted over, so that the last pixels of the frame do not blend with the grey.
    cell = cv2.warpAffine(_smoothed(part, scale), matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    column, row = left + (np.arange(width) + 0.5) / scale, top + (np.arange(height) + 0.5) / scale
    cell[:, (column < 0) | (column > frame.shape[1])] = _PADDING
    cell[(row < 0) | (row > frame.shape[0])] = _PADDING
    return cell, (np.array([x0, y0, x1, y1]) - [left, top, left, top]) * scale


def _moved_inside(start: float, length: float, size: int) -> float:
    return (size - length) / 2 if length >= size else min(max(start, 0.0), size - length)


def _smoothed(frame: np.ndarray, scale: float) -> np.ndarray:
    # Bilinear sampling alone would skip pixels of persons larger than the cell.
    return cv2.GaussianBlur(frame, (0, 0), 0.4 / scale) if scale < 0.7 else frame


CELL_HEIGHT, CELL_WIDTH = 224, 112
"""Size of a crop in pixels: twice as high as wide, which suits most persons."""
_JPEG_QUALITY = 76
_THREADS = 4  # decoding dominates, and releases Python's lock


@dataclass(frozen=True)
class Cell:
    """Crop with the box of a query or a result.

    Attributes:
        kind: "query", "correct" or "wrong"; for a search without ground truth "likely", "uncertain" or "unlikely".
        entry: the query, or one of its results, as in queries.json.
        rank: rank of a result, from 1; 0 for the query.
        image: data URI of the crop; "" if its frame cannot be read.
        box: x, y, width and height of the visible part of the box in pixels of the crop.
        alt: description of the crop.
    """

    kind: str
    entry: Mapping[str, Any]
    rank: int
    image: str
    box: tuple[float, float, float, float]
    alt: str


@dataclass(frozen=True)
class Strips:
    """Strips of queries.

    Attributes:
        cells: for each query its own cell, then those of its results.
        num_frames: number of requested frames.
        unreadable: reasons by name of the unreadable frames.
    """

    cells: list[list[Cell]]
    num_frames: int
    unreadable: dict[str, str]


def build_strips(rows: Sequence[Mapping[str, Any]], read_frame: ReadFrame) -> Strips:
    """Strips of queries and their results; each frame is read once.

    Args:
        rows: queries, see `read_queries`; results without ground truth have "verdict" instead of "correct".
        read_frame: returns a frame; if it raises a DatasetError, the cells say so instead of showing a crop.
    """
    entries = [[row, *row["results"]] for row in rows]
    wanted: dict[str, list[tuple[int, int]]] = {}
    for number, strip in enumerate(entries):
        for rank, entry in enumerate(strip):
            wanted.setdefault(entry["frame"], []).append((number, rank))

    def cut(name: str) -> tuple[list[Cell], str]:
        """Cells of a frame, and the reason if it cannot be read."""
        try:
            frame, reason = read_frame(name), ""
        except DatasetError as error:
            frame, reason = None, str(error)
        return [_cell(entries[number][rank], rank, frame) for number, rank in wanted[name]], reason

    names = sorted(wanted)  # frames of a video in order
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
    kind = (entry.get("verdict") or ("correct" if entry["correct"] else "wrong")) if rank else "query"
    alt = f"Rank {rank}, {kind}: detection in frame {entry['frame']}" if rank else f"Query in frame {entry['frame']}"
    if frame is None:
        return Cell(kind, entry, rank, "", (0, 0, 0, 0), alt)
    crop, box = crop_box(frame, entry["box"], CELL_HEIGHT, CELL_WIDTH)
    # The outline of a box that fills the crop would lie half outside.
    x0, y0 = np.clip(box[:2], 2, [CELL_WIDTH - 2, CELL_HEIGHT - 2])
    x1, y1 = np.clip(box[2:], 2, [CELL_WIDTH - 2, CELL_HEIGHT - 2])
    x, y, width, height = (round(float(value), 1) for value in (x0, y0, x1 - x0, y1 - y0))
    return Cell(kind, entry, rank, _data_uri(crop), (x, y, width, height), alt)


def _data_uri(image: np.ndarray) -> str:
    _, encoded = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")
