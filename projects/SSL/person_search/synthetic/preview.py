"""Preview of synthetic datasets: statistics, and a contact sheet of frames and identities."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..data.images import read_image
from ..data.records import Record
from .config import SPLITS
from .datasets import load_synthetic, load_synthetic_protocol

_LABELLED, _UNLABELLED = (80, 255, 80), (255, 170, 60)
_CELL = (56, 112)  # width and height of an identity's picture


def summarize(folder: str | Path) -> dict[str, Any]:
    """Counts and ranges of a dataset.

    Returns:
        {"train": ..., "test": ...}, each with frames, cameras, persons, identities, unlabelled (persons), min_height
        and max_height (of the boxes, pixels) and occluded (fraction of the persons that are visible by less than 90 %);
        the test split also with queries.

    Raises:
        DatasetError: the folder cannot be read.
    """
    summary: dict[str, Any] = {}
    for split in SPLITS:
        records = load_synthetic(folder, split)  # checks the file that is read once more below
        persons = json.loads((Path(folder) / f"{split}.json").read_text(encoding="utf-8"))["annotations"]
        heights = [person["bbox"][3] for person in persons]
        summary[split] = {
            "frames": len(records),
            "cameras": len({record["camera_id"] for record in records}),
            "persons": len(persons),
            "identities": len({person["person_id"] for person in persons} - {-1}),
            "unlabelled": sum(person["person_id"] < 0 for person in persons),
            "min_height": min(heights),
            "max_height": max(heights),
            "occluded": round(sum(person["visibility"] < 0.9 for person in persons) / len(persons), 3),
        }
    summary["test"]["queries"] = len(load_synthetic_protocol(folder).queries)
    return summary


def contact_sheet(folder: str | Path, split: str = "train", frames: int = 6, identities: int = 10) -> np.ndarray:
    """Contact sheet: frames with boxes and identities, and below a row of pictures for some identities, small to large.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        DatasetError: the folder cannot be read.
    """
    records = load_synthetic(folder, split)
    shown, cameras = min(frames, len(records)), len({record["camera_id"] for record in records})
    # Cameras take turns in the records, and should here.
    rounds = [i * len(records) // shown // cameras * cameras + i % cameras for i in range(shown)]
    chosen = [records[min(i, len(records) - 1)] for i in rounds]
    tiles = [_annotated(record) for record in chosen]
    while len(tiles) % 2:
        tiles.append(np.zeros_like(tiles[0]))
    rows = [np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
    width = rows[0].shape[1]
    return np.vstack([*rows, *_identity_rows(records, identities, width)])


def _annotated(record: Record) -> np.ndarray:
    image = read_image(record["file_name"])
    for person in record["annotations"]:
        x0, y0, x1, y1 = (round(v) for v in person["bbox"])
        color = _UNLABELLED if person["person_id"] < 0 else _LABELLED
        cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), color, 1)
        label = "?" if person["person_id"] < 0 else str(person["person_id"])
        cv2.putText(image, label, (x0 + 1, max(10, y0 - 3)), cv2.FONT_HERSHEY_SIMPLEX, 0.4, color, 1, cv2.LINE_AA)
    return image


def _identity_rows(records: Sequence[Record], identities: int, width: int) -> list[np.ndarray]:
    """Row of pictures, (cell height, width, 3), for each of the first identities."""
    seen: dict[int, list[tuple[float, Record, list[float]]]] = defaultdict(list)
    for record in records:
        for person in record["annotations"]:
            x0, y0, x1, y1 = person["bbox"]
            if person["person_id"] >= 0:
                seen[person["person_id"]].append((y1 - y0, record, [x0, y0, x1, y1]))
    rows = []
    columns = width // _CELL[0]
    for person_id in sorted(seen)[:identities]:
        found = sorted(seen[person_id], key=lambda one: one[0])
        picked = [found[i] for i in np.unique(np.linspace(0, len(found) - 1, columns).astype(int))]
        row = np.full((_CELL[1], width, 3), 40, np.uint8)
        for number, (_, record, box) in enumerate(picked):
            x = number * _CELL[0]
            row[:, x : x + _CELL[0]] = _crop(read_image(record["file_name"]), box)
        cv2.putText(row, str(person_id), (2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _LABELLED, 1, cv2.LINE_AA)
        rows.append(row)
    return rows


def _crop(image: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """Box, resized into a cell of `_CELL` with its proportions kept."""
    x0, y0, x1, y1 = (round(v) for v in box)
    crop = image[y0:y1, x0:x1]
    scale = min(_CELL[0] / crop.shape[1], _CELL[1] / crop.shape[0])
    size = (max(1, int(crop.shape[1] * scale)), max(1, int(crop.shape[0] * scale)))
    resized = cv2.resize(crop, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    cell = np.full((_CELL[1], _CELL[0], 3), 40, np.uint8)
    x, y = (_CELL[0] - size[0]) // 2, (_CELL[1] - size[1]) // 2
    cell[y : y + size[1], x : x + size[0]] = resized
    return cell
