"""Answers to take away: a line of JSON an appearance, a table, or a sheet with pictures."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Callable, Mapping
from typing import Any

from ..sheet import SheetCell, render_sheet
from . import schemas
from .answers import percent
from .uploads import RequestError

MEDIA_TYPES = {"jsonl": "application/x-ndjson", "csv": "text/csv", "html": "text/html"}
_FIELDS = (
    *("rank", "mark", "verdict", "similarity", "false_match_rate", "camera", "source", "start", "end"),
    *("start_offset", "end_offset", "detections", "detection", "tracklet", "frame", "x0", "y0", "x1", "y1"),
)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def export_answer(answer: schemas.Answer, request: schemas.ExportRequest, crop: Callable[[str], bytes]) -> bytes:
    """File of an answer in one of the forms.

    Args:
        answer: the answer.
        request: form, and what was marked since.
        crop: JPEG of a detection; a RequestError leaves its picture out of the sheet.
    """
    marks = {name: "right" for name in request.right} | {name: "wrong" for name in request.wrong}
    rows = [_row(rank, appearance, marks) for rank, appearance in enumerate(answer.appearances, 1)]
    if request.format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if request.format == "csv":
        return _table(rows)
    # Pictures that a visitor uploaded are the visitor's: of those asked for, the footage's own are shown.
    asked = [query.detection for query in answer.queries if query.detection is not None]
    return render_sheet(
        answer.statement,
        [SheetCell("query", "query", [name], _picture(crop, name), "Person asked for") for name in asked],
        [_cell(row, crop) for row in rows],
    ).encode()


def _cell(row: Mapping[str, Any], crop: Callable[[str], bytes]) -> SheetCell:
    title = f"{row['rank']} {row['verdict']}" + (f", marked {row['mark']}" if row["mark"] else "")
    when = (
        f"{row['start']} to {row['end']}" if row["start"] else f"{row['start_offset']:.1f} to {row['end_offset']:.1f} s"
    )
    lines = [
        f"sim. {row['similarity']:.3f}, {percent(row['false_match_rate'])} false",
        f"camera {row['camera']}",
        f"{row['source']} {when}",
        row["detection"],
    ]
    alt = f"Rank {row['rank']}, {row['verdict']}: camera {row['camera']}"
    return SheetCell(row["verdict"], title, lines, _picture(crop, row["detection"]), alt)


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


def _picture(crop: Callable[[str], bytes], detection: str) -> str:
    try:
        return "data:image/jpeg;base64," + base64.b64encode(crop(detection)).decode()
    except RequestError:
        return ""
