"""Answers to take away: a line of JSON an appearance, a table, or a sheet with pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from jinja2 import Environment

from . import schemas
from .answers import percent
from .uploads import RequestError

MEDIA_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv", "html": "text/html"}
_FIELDS = (
    *("rank", "mark", "verdict", "similarity", "false_match_rate", "camera", "source", "start", "end"),
    *("start_offset", "end_offset", "detections", "detection", "tracklet", "frame", "x0", "y0", "x1", "y1"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_answer(
    answer: schemas.Answer, request: schemas.ExportRequest, pages: Environment, crop: Callable[[str], bytes]
) -> bytes:
    """File of an answer in one of the forms.

    Args:
        answer: the answer.
        request: form, and what was marked since.
        pages: templates.
        crop: JPEG of a detection; a RequestError leaves its picture out of the sheet.
    """
    marks = {name: "right" for name in request.right} | {name: "wrong" for name in request.wrong}
    rows = [_row(rank, appearance, marks) for rank, appearance in enumerate(answer.appearances, 1)]
    if request.format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if request.format == "csv":
        return _table(rows)
    pictures = [_picture(crop, row["detection"]) for row in rows]
    shown = [row | {"picture": picture, "strangers": percent(row["false_match_rate"])} for row, picture in
             zip(rows, pictures, strict=True)]  # fmt: skip
    return pages.get_template("sheet.html").render(answer=answer, rows=shown).encode()


def _row(rank: int, appearance: schemas.Appearance, marks: Mapping[str, str]) -> dict[str, Any]:
    best = appearance.best
    values = (
        *(rank, marks.get(best.id, appearance.mark), appearance.verdict, round(appearance.similarity, 4)),
        *(appearance.false_match_rate, appearance.camera, appearance.source.name),
        *(moment and moment.isoformat() for moment in (appearance.start, appearance.end)),
        *(round(appearance.start_offset, 3), round(appearance.end_offset, 3), appearance.detections, best.id),
        *(appearance.tracklet, best.frame, *(round(value, 1) for value in best.box)),
    )
    return dict(zip(_FIELDS, values, strict=True))


def _table(rows: list[dict[str, Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, _FIELDS)
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    return stream.getvalue().encode("utf-8-sig")  # the mark lets spreadsheets read other letters than ASCII


def _harmless(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula: names of cameras and files are anybody's."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _picture(crop: Callable[[str], bytes], detection: str) -> str | None:
    try:
        return "data:image/jpeg;base64," + base64.b64encode(crop(detection)).decode()
    except RequestError:
        return None
