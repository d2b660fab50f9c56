"""Report page of an evaluation, report.html, made from results.json, breakdown.json and queries.json."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from ..data.images import frame_reader
from ..errors import DatasetError
from ..evaluation.analysis import choose_queries, hardest_queries, read_queries
from ..evaluation.storage import read_json
from ..io import replacing
from .charts import charts, gallery_name, shown_galleries
from .strips import CELL_HEIGHT, CELL_WIDTH, build_strips

NUM_HARDEST = NUM_SPREAD = 10
"""Default number of strips of each kind; a strip takes some 70 kB."""
MAX_STRIPS = 30
"""Maximum number of strips of each kind, which limits the size of the page."""
_FOLDER = Path(__file__).parent
_TERMS = {
    "dataset_kind": "kind of data set",
    "searched": "searched",
    "query_feature": "feature of a query",
    "similarity": "similarity",
    "context_matching": "context matching",
    "reranking": "re-ranking",
    "true_positive": "true positive",
    "average_precision": "average precision",
}
_NAMES = {"recall_labelled": "recall, identity known"}


def write_report(
    folder: str | os.PathLike[str],
    records: Sequence[Mapping[str, Any]],
    hardest: int = NUM_HARDEST,
    spread: int = NUM_SPREAD,
) -> Path:
    """Writes report.html from the JSON files of `PersonSearchEvaluator` in a folder.

    Args:
        folder: folder with results.json, breakdown.json and queries.json.
        records: evaluated dataset; only the frames of the strips are read, and the page lists unreadable ones.
        hardest: number of strips of the queries with the lowest average precision, at most `MAX_STRIPS`.
        spread: number of further strips, evenly spaced over the other queries from best to worst, at most `MAX_STRIPS`.

    Returns:
        path of the report.

    Raises:
        DatasetError: a file is missing or not the evaluator's, or the report cannot be written.
    """
    folder = Path(folder)
    results, breakdown = (read_json(folder / name) for name in ("results.json", "breakdown.json"))
    rows = read_queries(folder / "queries.json")
    first = hardest_queries(rows, min(hardest, MAX_STRIPS))
    others = [index for index in range(len(rows)) if index not in set(first) and rows[index]["AP"] is not None]
    chosen = choose_queries([rows[index] for index in others], min(spread, MAX_STRIPS))
    second = [others[place] for place in chosen]
    strips = build_strips([rows[index] for index in (*first, *second)], frame_reader(records))
    shown = [
        {"number": index, "row": rows[index], "cells": cells}
        for index, cells in zip((*first, *second), strips.cells, strict=True)
    ]
    try:
        page = environment().get_template("page.html").render(
            style=Markup((_FOLDER / "page.css").read_text(encoding="utf-8")),
            results=results,
            breakdown=breakdown,
            charts=charts(results, breakdown),
            terms=_TERMS,
            hardest=shown[: len(first)],
            spread=shown[len(first) :],
            strips=strips,
            detection={_NAMES.get(name, name): v for name, v in results["figures"].get("detection", {}).items()},
            size=(CELL_WIDTH, CELL_HEIGHT),
            shown_galleries=shown_galleries(breakdown),
        )  # fmt: skip
    except (TemplateError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DatasetError(
            f"results.json and breakdown.json in {folder} are not what this version's evaluator writes ({error!r}); "
            "evaluate again"
        ) from error
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return folder / "report.html"


def environment() -> Environment:
    """Jinja environment of the pages, which escapes values and raises on missing ones."""
    made = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["percent"] = lambda value: "–" if value is None else f"{value:.1f}"
    made.filters["number"] = lambda value: f"{value:,}".replace(",", "\u202f")
    made.filters["gallery"] = gallery_name
    made.filters["words"] = lambda name: str(name).replace("_", " ")
    return made
