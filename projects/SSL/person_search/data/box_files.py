"""Files of boxes that annotators, trackers and detectors write: lines of MOTChallenge's text format, COCO results."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import DatasetError
from .records import BoxXYXY

PERSON_CATEGORY = 1  # COCO's
_WITH_CLASS = (8, 9)  # columns of MOT16 and later; with 10 they are those of 2015, which end in world coordinates


@dataclass(frozen=True)
class MotLine:
    """A line "frame,id,x,y,w,h[,mark[,class[,visibility]]]".

    Attributes:
        number: of the line, from 1.
        frame: counted as the file does, from 1 as a rule.
        identity: negative where there is none.
        bbox: (x0, y0, x1, y1) in pixels.
        mark: seventh column: the flag of a ground truth, the score of a detector; None where it is not there.
        category: class of MOT16 and later; None where it is not there.
    """

    number: int
    frame: int
    identity: int
    bbox: BoxXYXY
    mark: float | None
    category: int | None


def read_mot_lines(file: Path) -> Iterator[MotLine]:
    """The lines of a MOT file, empty ones left out.

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
    """An entry of a COCO results file.

    Attributes:
        image_id: as it stands there.
        category_id: `PERSON_CATEGORY` where it is absent.
        bbox: (x0, y0, x1, y1) in pixels.
        score: 1 where it is absent.
    """

    image_id: int | str
    category_id: int
    bbox: BoxXYXY
    score: float


def read_coco_results(file: Path) -> list[ResultBox]:
    """The boxes of a COCO results file: a list of {"image_id", "category_id", "bbox": [x, y, w, h], "score"}.

    Raises:
        DatasetError: the file cannot be read or holds something else; the message gives the place.
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
