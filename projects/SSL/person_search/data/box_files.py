"""Box files of annotators, trackers and detectors: MOTChallenge text files and COCO results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .records import BoxXYXY

PERSON_CATEGORY = 1  # in COCO
_WITH_CLASS = (8, 9)  # columns of MOT16 and later; the 10 columns of 2015 end in world coordinates


@dataclass(frozen=True)
class MotLine:
    """A line "frame,id,x,y,w,h[,mark[,class[,visibility]]]".

    Attributes:
        number: line number, from 1.
        frame: frame number as in the file, usually from 1.
        identity: identity; negative if unlabelled.
        bbox: (x0, y0, x1, y1) in pixels.
        mark: seventh column, the flag of a ground truth or the score of a detector; None if missing.
        category: class in MOT16 and later; None if missing.
    """

    number: int
    frame: int
    identity: int
    bbox: BoxXYXY
    mark: float | None
    category: int | None


def read_mot_lines(file: Path) -> Iterator[MotLine]:
    """Lines of a MOT file, without empty ones.

    Raises:
        DatasetError: the file cannot be read, or a line is malformed; the message gives file and line.
    """
    columns = 0
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read as lines of MOT ({error})") from error
    for number, content in enumerate(lines, 1):
        if not content.strip():
            continue
        fields = content.split(",")
        columns = columns or len(fields)
        try:
            if len(fields) != columns or not 6 <= columns <= 10:
                raise ValueError
            values = [float(field) for field in fields]
            frame, identity = _whole(values[0]), _whole(values[1])
            category = int(values[7]) if columns in _WITH_CLASS else None
        except (ValueError, OverflowError):
            raise DatasetError(
                f"{file}: line {number}: expected {columns if 6 <= columns <= 10 else '6 to 10'} numbers "
                f"'frame,id,x,y,w,h,...', found {content.strip()[:80]!r}"
            ) from None
        x, y, w, h = values[2:6]
        yield MotLine(number, frame, identity, (x, y, x + w, y + h), values[6] if columns > 6 else None, category)


def _whole(value: float) -> int:
    if value != int(value):
        raise ValueError
    return int(value)


@dataclass(frozen=True)
class ResultBox:
    """Entry of a COCO results file.

    Attributes:
        image_id: image id as in the file.
        category_id: category; `PERSON_CATEGORY` if missing.
        bbox: (x0, y0, x1, y1) in pixels.
        score: detection score; 1 if missing.
    """

    image_id: int | str
    category_id: int
    bbox: BoxXYXY
    score: float


def read_coco_results(file: Path) -> list[ResultBox]:
    """Boxes of a COCO results file: a list of {"image_id", "category_id", "bbox": [x, y, w, h], "score"}.

    Raises:
        DatasetError: the file cannot be read or has another format; the message gives the position.
    """
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: cannot be read as COCO results ({error})") from error
    if not isinstance(entries, list):
        raise DatasetError(f"{file}: is a {type(entries).__name__}, expected COCO results: a list of boxes")
    found = []
    for number, entry in enumerate(entries):
        try:
            x, y, width, height = (float(value) for value in entry["bbox"])
            image_id, score = entry["image_id"], float(entry.get("score", 1.0))
            category = int(entry.get("category_id", PERSON_CATEGORY))
            if not isinstance(image_id, int | str) or isinstance(image_id, bool) or not math.isfinite(score):
                raise ValueError(f"image_id {image_id!r}, score {score}")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise DatasetError(
                f"{file}: entry {number}: expected image_id, bbox [x, y, width, height] and score ({error!r})"
            ) from error
        found.append(ResultBox(image_id, category, (x, y, x + width, y + height), score))
    return found
